"""`fastloop bench forecast`: forecasters of trajectories on one held-out part of recorded data."""
