"""An observation encoder trained by itself, before there is a denoiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import l1_loss

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.scene import SceneEncoder
from fastloop.policies.diffusion.state import StateEncoder

__all__ = ["ChunkRegression"]


class ChunkRegression(nn.Module):
    """An encoder with one linear layer that reads the chunk off its features.

    Trains the encoder by itself, at a small fraction of what a sample through the denoiser costs,
    so that its features say which actions are likely before the denoiser learns to use them.

    Args:
        encoder: trained in place.
        horizon, action_dim: T and A.
    """

    def __init__(self, encoder: StateEncoder | SceneEncoder, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.tokens * encoder.width, horizon * action_dim)

    def loss(
        self,
        observations: Mapping[str, torch.Tensor],
        actions: torch.Tensor,
        normalizer: LinearNormalizer,
        *,
        first: int = 0,
    ) -> torch.Tensor:
        """Mean absolute error of the chunk.

        Args:
            observations: (B, O, ...) by key, raw.
            actions: (B, T, A) as the network sees them.
            normalizer: of the observations.
            first: the first action that is learned, as of `Objective`; so are all after it.
        """
        predicted = self.head(self.encoder(observations, normalizer).flatten(1)).view_as(actions)
        return l1_loss(predicted[:, first:], actions[:, first:])
