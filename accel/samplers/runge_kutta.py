"""Flow matching by classical Runge-Kutta: four evaluations of the network a solver step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers.base import Tables
from fastloop.accel.samplers.flow import FlowEuler

__all__ = ["FlowRK4"]


@dataclass(frozen=True)
class FlowRK4(Tables):
    """The path of `FlowEuler`; its K are evaluations, four to a solver step.

    So what is scheduled by k is scheduled by the solver's step and the stage in it. The memory
    holds where the solver step began and the weighted sum of its slopes so far.

    Attributes:
        width: (K,) of the solver step that an evaluation belongs to, in s; negative.
    """

    width: torch.Tensor

    @classmethod
    def build(cls, num_inference_steps: int, num_train_timesteps: int = 1) -> Self:
        """`num_inference_steps` equal solver steps from s = 1 to 0."""
        s = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        h = s.diff()
        stages = torch.stack([s[:-1], s[:-1] + h / 2, s[:-1] + h / 2, s[1:]], dim=1).flatten()
        # Two stages share a time; predictors need times that rise, so each gets a fourth of a step.
        finer = FlowEuler.build(4 * num_inference_steps).log_snr
        return cls((stages * num_train_timesteps).float(), finer, width=h.repeat_interleave(4))

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
        """See `Sampler.step`; the sample of a stage, and after the last one that of the step."""
        stage, h = k % 4, self.width[k]
        if stage == 0:
            return sample + h / 2 * output, torch.stack([sample, output])
        assert memory is not None, "the first stage of a step makes it"
        start, slopes = memory
        if stage == 3:
            return start + h / 6 * (slopes + output), memory
        reach = h / 2 if stage == 1 else h
        return start + reach * output, torch.stack([start, slopes + 2 * output])
