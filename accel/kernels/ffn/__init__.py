"""The feed-forward branch of a pre-norm transformer."""
