"""Chunks to measure policies on: observations of episodes, each with its noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.setup import Setup

__all__ = ["Chunks"]


@dataclass(frozen=True)
class Chunks:
    """The same chunks for every policy, whatever its sampler and number format.

    Attributes:
        history: B observations.
        rng: noise for each of them. A sampler that draws less takes the head of it, so that all
            chains of a chunk start at the same place.
    """

    history: History
    rng: Rng

    @classmethod
    def draw(cls, setup: Setup, count: int, first_seed: int, seed: int) -> Chunks:
        """Observations of `count` episodes, with noise of the root `seed`."""
        episodes = range(first_seed, first_seed + count)
        rng = Rng.for_envs(seed, episodes, [0] * count)
        return cls(setup.observations(count, first_seed), rng)

    @torch.inference_mode()
    def inputs(self, policy: DiffusionPolicy) -> tuple[torch.Tensor, torch.Tensor]:
        """What the policy's loop takes: noise (num_noises, B, T, A) and condition (B, O, D)."""
        cond = policy.condition(self.history)
        return policy.noise(self.rng).to(cond), cond
