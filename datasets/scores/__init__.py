"""Scores of predictions, as pure functions of arrays."""
