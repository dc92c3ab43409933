"""Attention of branches that share a prefix: the prefix is read once for all of them."""
