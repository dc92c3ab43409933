"""`fastloop bench plans`: what CacheFlow's density and alarm are worth on held-out episodes."""
