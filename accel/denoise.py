"""The loop from noise to actions: what every accelerator of a diffusion policy replaces."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import torch

from fastloop.accel.report import AccelReport
from fastloop.accel.samplers.base import Sampler, denoise

__all__ = ["DenoiseLoop", "PlainLoop"]


class DenoiseLoop(Protocol):
    """Runs one chain per environment and keeps nothing between calls."""

    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """Denoise one chunk for B environments.

        Args:
            noise: (num_noises, B, T, A) standard normal, the start of the chain first.
            cond: (B, O, D) observation tokens, None for an unconditional network.

        Returns:
            (B, T, A) the last sample, and what it took.
        """
        ...


class PlainLoop:
    """The policy as published: one full network evaluation a step.

    Args:
        network: answers (sample (B, T, A), timestep (), cond (B, O, D)) with (B, T, A).
        sampler: the reverse process.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
        sampler: Sampler,
    ) -> None:
        self.network = network
        self.sampler = sampler

    @torch.inference_mode()
    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        started = perf_counter()
        timesteps = self.sampler.timesteps.unbind()
        sample = denoise(self.sampler, lambda k, x: self.network(x, timesteps[k], cond), noise)
        return sample, AccelReport(
            network_evaluations=len(timesteps),
            stage_ms={"loop": 1e3 * (perf_counter() - started)},
        )
