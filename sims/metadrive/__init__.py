"""MetaDrive as the engine of recorded and of made-up traffic."""
