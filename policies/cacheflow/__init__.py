"""CacheFlow: plans and their probabilities from a cached flow (Maeda et al. 2025)."""
