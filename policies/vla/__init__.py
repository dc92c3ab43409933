"""Vision-language policies: camera frames and a prompt in, an answer with waypoints out."""
