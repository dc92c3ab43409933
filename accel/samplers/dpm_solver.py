"""DPM-Solver++ (2M): a second-order multistep solver of the probability flow (Lu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers.base import CleanTables, clean_coefficients, log_snr
from fastloop.accel.samplers.schedule import NoiseSchedule

__all__ = ["DPMSolver"]


@dataclass(frozen=True)
class DPMSolver(CleanTables):
    """Midpoint second order; first order at the first step and at the last, which ends at x_0.

    The memory is the x_0 of the step before. Clipping it is our addition: the published solver
    leaves x_0 free (`clip=None`).

    Attributes:
        of_x0, of_sample, of_previous: (K,)
            next = of_x0 x_0 + of_sample sample + of_previous memory.
    """

    of_x0: torch.Tensor
    of_sample: torch.Tensor
    of_previous: torch.Tensor

    @classmethod
    def build(
        cls,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        prediction_type: str = "epsilon",
        clip: float | None = 1.0,
    ) -> Self:
        """Tables for timesteps evenly spaced from the last to the first, which is left out.

        Raises:
            ValueError: the schedule is too short for that many distinct timesteps.
        """
        if num_inference_steps >= len(schedule):
            raise ValueError(
                f"dpm_solver takes at most {len(schedule) - 1} steps of a schedule of "
                f"{len(schedule)}, got {num_inference_steps}; it is meant for 8 to 20, use ddpm "
                "or ddim for more"
            )
        grid = torch.linspace(0, len(schedule) - 1, num_inference_steps + 1, dtype=torch.float64)
        timesteps = grid.round().long().flip(0)[:-1]
        abar = schedule.alphas_cumprod[timesteps]
        signal, spread = abar.sqrt(), (1 - abar).sqrt()
        signal_next = torch.cat([signal[1:], signal.new_ones(1)])
        spread_next = torch.cat([spread[1:], spread.new_zeros(1)])

        # h is the width of a step in log signal-to-noise; the last one goes to infinity.
        h = signal_next.log() - spread_next.log() - log_snr(abar)
        gain = -signal_next * torch.expm1(-h)
        of_previous = torch.zeros_like(gain)
        of_previous[1:-1] = -0.5 * gain[1:-1] * h[1:-1] / h[:-2]
        return cls(
            timesteps,
            log_snr(abar),
            *clean_coefficients(abar, prediction_type),
            clip,
            of_x0=gain - of_previous,
            of_sample=spread_next / spread,
            of_previous=of_previous,
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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Sampler.step`; `memory` is None at the first step, `noise` is not used."""
        x0 = self.predict_clean(k, sample, output)
        following = self.of_x0[k] * x0 + self.of_sample[k] * sample
        if memory is not None:
            following = following + self.of_previous[k] * memory
        return following, x0
