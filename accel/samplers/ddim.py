"""DDIM: the deterministic sampler of a DDPM-trained network (Song et al. 2021), eta = 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers.base import CleanTables, clean_coefficients, leading_steps, log_snr
from fastloop.accel.samplers.schedule import NoiseSchedule

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(CleanTables):
    """Deterministic sampling; the direction to x_t comes from the unclipped prediction.

    Attributes:
        of_x0, of_sample, of_output: (K,) next = of_x0 x_0 + of_sample sample + of_output output.
    """

    of_x0: torch.Tensor
    of_sample: torch.Tensor
    of_output: torch.Tensor

    @classmethod
    def build(
        cls,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        prediction_type: str = "epsilon",
        clip: float | None = 1.0,
    ) -> Self:
        """Tables for `num_inference_steps` leading timesteps of `schedule`; abar ends at 1."""
        timesteps, abar, abar_next = leading_steps(schedule, num_inference_steps)
        x0_sample, x0_output = clean_coefficients(abar, prediction_type)
        # noise = (sample - sqrt(abar) x_0) / sqrt(1 - abar), with x_0 linear in sample and output
        scale = (1 - abar_next).sqrt() / (1 - abar).sqrt()
        return cls(
            timesteps,
            log_snr(abar),
            x0_sample,
            x0_output,
            clip,
            of_x0=abar_next.sqrt(),
            of_sample=scale * (1 - abar.sqrt() * x0_sample),
            of_output=-scale * abar.sqrt() * x0_output,
        )

    @property
    def num_noises(self) -> int:
        """The start only."""
        return 1

    def step(
        self,
        k: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """See `Sampler.step`; `noise` is not used."""
        x0 = self.predict_clean(k, sample, output)
        return self.of_x0[k] * x0 + self.of_sample[k] * sample + self.of_output[k] * output, None
