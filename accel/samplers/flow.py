"""Flow matching: Euler steps along the straight path from noise to data (Lipman et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from fastloop.accel.samplers.base import Tables

__all__ = ["FlowEuler"]


@dataclass(frozen=True)
class FlowEuler(Tables):
    """The path is x_s = (1 - s) x_0 + s noise, and the network predicts noise - x_0.

    Attributes:
        of_output: (K,) next = sample + of_output output, the (negative) width of each step in s.
    """

    of_output: torch.Tensor

    @classmethod
    def build(cls, num_inference_steps: int, num_train_timesteps: int = 1) -> Self:
        """K equal steps from s = 1 to 0; the network is given s times `num_train_timesteps`."""
        s = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        now = s[:-1].clamp(max=1 - 0.5 / num_inference_steps)  # the start has no signal at all
        ratio = (1 - now).log() - now.log()
        return cls((s[:-1] * num_train_timesteps).float(), ratio, of_output=s.diff())

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
        return sample + self.of_output[k] * output, None
