"""The attention branches of a pre-norm transformer on short sequences."""
