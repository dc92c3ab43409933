"""Cached futures of an unconditional flow: densities, samples and events of a condition from one
matrix product."""
