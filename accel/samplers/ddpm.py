"""DDPM: ancestral sampling with the posterior of the forward process (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers.base import CleanTables, clean_coefficients, leading_steps, log_snr
from fastloop.accel.samplers.schedule import NoiseSchedule

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM(CleanTables):
    """Ancestral sampling with the posterior's own variance (`fixed_small`).

    Attributes:
        of_x0, of_sample, of_noise: (K,) next = of_x0 x_0 + of_sample sample + of_noise noise.
    """

    of_x0: torch.Tensor
    of_sample: torch.Tensor
    of_noise: torch.Tensor

    @classmethod
    def build(
        cls,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        prediction_type: str = "epsilon",
        clip: float | None = 1.0,
    ) -> Self:
        """Tables for `num_inference_steps` leading timesteps of `schedule`."""
        timesteps, abar, abar_next = leading_steps(schedule, num_inference_steps)
        alpha = abar / abar_next
        variance = ((1 - abar_next) / (1 - abar) * (1 - alpha)).clamp(min=1e-20)
        of_noise = variance.sqrt()
        of_noise[-1] = 0
        return cls(
            timesteps,
            log_snr(abar),
            *clean_coefficients(abar, prediction_type),
            clip,
            of_x0=abar_next.sqrt() * (1 - alpha) / (1 - abar),
            of_sample=alpha.sqrt() * (1 - abar_next) / (1 - abar),
            of_noise=of_noise,
        )

    @property
    def num_noises(self) -> int:
        """The start and one for every step but the last."""
        return len(self.timesteps)

    def step(
        self,
        k: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """See `Sampler.step`; `noise` None gives the posterior's mean."""
        x0 = self.predict_clean(k, sample, output)
        mean = self.of_x0[k] * x0 + self.of_sample[k] * sample
        return (mean if noise is None else mean + self.of_noise[k] * noise), None
