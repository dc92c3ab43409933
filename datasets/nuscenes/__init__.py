"""nuScenes: tables, keyframes, maps and the questions asked of them."""
