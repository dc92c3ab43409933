"""Language diffusion models over stock decoders of transformers."""
