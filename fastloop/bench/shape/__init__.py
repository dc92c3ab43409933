"""`fastloop bench shape`: what a pass of a network of some size takes, with random weights."""
