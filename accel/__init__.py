"""How to decide sooner: samplers, block caches and the loops that run them. Needs torch only."""
