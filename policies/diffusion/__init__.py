"""Diffusion and flow policies: networks, observation encoders, losses and the policy itself."""
