"""The module that a checkpoint describes, with its weights in it."""

from __future__ import annotations

from fastloop.policies.checkpoints.checkpoint import Checkpoint
from fastloop.policies.checkpoints.checks import NETWORKS, normalizer_widths
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer

__all__ = ["build_model"]


def build_model(checkpoint: Checkpoint) -> DiffusionModel:
    """Build the network, its normalizer and its observation encoder, in evaluation mode."""
    model = DiffusionModel(
        NETWORKS[checkpoint.network](**checkpoint.arch),
        LinearNormalizer(normalizer_widths(checkpoint.inputs, checkpoint.action_dim)),
        tuple(checkpoint.inputs),
        build_encoder(
            checkpoint.inputs,
            checkpoint.n_obs_steps,
            vision=checkpoint.vision,
            state=checkpoint.state,
            scene=checkpoint.scene,
            clip=checkpoint.clip,
        ),
        relative_to=checkpoint.relative_to,
        cumulative=checkpoint.cumulative,
    )
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()
