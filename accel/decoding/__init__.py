"""Tokens decided sooner: block denoising, speculation over a scaffold, and forked prefixes."""
