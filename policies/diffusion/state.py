"""Low-dimensional observations as features that a denoiser can use at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.spec import TensorSpec

__all__ = ["StateConfig", "StateEncoder"]


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class StateConfig:
    """Size of a `StateEncoder`.

    Attributes:
        width: of the residual stream.
        depth: residual blocks.
        feature_dim: F, of each of the O observation tokens.
    """

    width: int = 512
    depth: int = 4
    feature_dim: int = 256


class StateEncoder(nn.Module):
    """A residual network over the whole observation window, once per chunk.

    The published denoiser sees raw coordinates through one linear layer, and has to learn geometry
    in the loop that runs K times. Here that is learned outside of the loop, where it is cheap.

    Args:
        inputs: `PolicySpec.inputs`, vectors only.
        n_obs_steps: O.
        config: how large.

    Attributes:
        tokens, width: O and F.
    """

    def __init__(
        self, inputs: Mapping[str, TensorSpec], n_obs_steps: int, config: StateConfig
    ) -> None:
        super().__init__()
        images = [key for key, spec in inputs.items() if len(spec.shape) == 3]
        if images:
            raise ValueError(f"a state encoder reads vectors, and {images} are images")
        self.keys = tuple(inputs)
        self.tokens, self.width = n_obs_steps, config.feature_dim
        seen = n_obs_steps * sum(math.prod(spec.shape) for spec in inputs.values())
        self.stem = nn.Linear(seen, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.depth))
        self.out = nn.Linear(config.width, n_obs_steps * config.feature_dim)
        self.norm = nn.LayerNorm(n_obs_steps * config.feature_dim)

    def forward(
        self, observations: Mapping[str, torch.Tensor], normalizer: LinearNormalizer
    ) -> torch.Tensor:
        """Raw observations (B, O, ...) by key to tokens (B, O, F)."""
        frames = [normalizer.normalize(key, observations[key]).flatten(2) for key in self.keys]
        stream = self.stem(torch.cat(frames, dim=-1).flatten(1))
        for block in self.blocks:
            stream = stream + block(stream)
        return self.norm(self.out(stream)).unflatten(1, (self.tokens, self.width))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, width)
        self.narrow = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(gelu(self.wide(self.norm(x))))
