"""Language diffusion models: published checkpoints over stock classes of transformers."""

from fastloop.policies.dlm.folder import is_language_model, load_language_model

__all__ = ["is_language_model", "load_language_model"]
