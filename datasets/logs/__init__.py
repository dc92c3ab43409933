"""Readers of recorded drives, one module a format; each makes `DrivingLog`s."""
