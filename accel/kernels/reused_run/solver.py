"""Any sampler of `accel/samplers` as one table, whose row k is the whole update of step k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers import DDIM, DDPM, DPMSolver, FlowEuler, Sampler

__all__ = ["COLUMNS", "Solver"]

COLUMNS = (
    "x0_sample",
    "x0_output",
    "of_x0",
    "of_sample",
    "of_output",
    "of_noise",
    "of_previous",
)


@dataclass(frozen=True, eq=False)
class Solver:
    """x_0 = clip(x0_sample sample + x0_output output), and the next sample is
    of_x0 x_0 + of_sample sample + of_output output + of_noise noise + of_previous memory,
    where the memory is the x_0 of the step before.

    Attributes:
        rows: (K, 7) the `COLUMNS`.
        clip: as in `CleanTables`.
    """

    rows: torch.Tensor
    clip: float | None

    @classmethod
    def of(cls, sampler: Sampler) -> Self:
        """The table of `sampler`, on its device and in its dtype.

        Raises:
            ValueError: a sampler that is not of this form.
        """
        if isinstance(sampler, FlowEuler):
            width = sampler.of_output
            zero, one = torch.zeros_like(width), torch.ones_like(width)
            return cls(torch.stack([zero, zero, zero, one, width, zero, zero], dim=1), None)
        if not isinstance(sampler, DDPM | DDIM | DPMSolver):
            raise ValueError(
                f"no solver table for {type(sampler).__name__}; have DDPM, DDIM, DPMSolver, "
                "FlowEuler"
            )
        absent = torch.zeros_like(sampler.x0_sample)
        columns = [getattr(sampler, name, absent) for name in COLUMNS]
        return cls(torch.stack(columns, dim=1), sampler.clip)

    def step(
        self,
        k: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None,
        memory: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next sample and the next memory; see `Sampler.step`."""
        x0_sample, x0_output, of_x0, of_sample, of_output, of_noise, of_previous = self.rows[k]
        x0 = x0_sample * sample + x0_output * output
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        following = of_x0 * x0 + of_sample * sample + of_output * output
        if noise is not None:
            following = following + of_noise * noise
        if memory is not None:
            following = following + of_previous * memory
        return following, x0
