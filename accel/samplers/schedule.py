"""The forward process: how much of an action is left after t steps of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["BETA_SCHEDULES", "PREDICTION_TYPES", "FlowPath", "NoiseSchedule"]

BETA_SCHEDULES = ("squaredcos_cap_v2", "linear")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

_MAX_BETA = 0.999  # keeps the last step of the cosine schedule invertible


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020).

    Attributes:
        alphas_cumprod: (num_train_timesteps,) float64, abar_t, falling.
    """

    alphas_cumprod: torch.Tensor

    @classmethod
    def from_betas(cls, betas: torch.Tensor) -> NoiseSchedule:
        """The schedule whose step t keeps the fraction 1 - betas[t] of the signal's variance."""
        return cls(torch.cumprod(1.0 - betas.to(torch.float64), dim=0))

    @classmethod
    def squared_cosine(cls, num_train_timesteps: int = 100) -> NoiseSchedule:
        """abar(t) = cos^2 with capped betas (Nichol and Dhariwal 2021), `squaredcos_cap_v2`."""

        def remaining(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        n = num_train_timesteps
        betas = [min(1 - remaining((i + 1) / n) / remaining(i / n), _MAX_BETA) for i in range(n)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float64))

    @classmethod
    def linear(
        cls, num_train_timesteps: int = 100, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """Betas on a line from `beta_start` to `beta_end` (Ho et al. 2020)."""
        return cls.from_betas(
            torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """`count` steps to train on, (count,) int64 on the CPU, all equally likely."""
        return torch.randint(len(self), (count,), generator=generator)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noise `x0` (B, ...) with `noise` of its shape up to step `t` (B,) int64."""
        signal, spread = self._at(t, x0)
        return signal * x0 + spread * noise

    def target(
        self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """What a network of this `prediction_type` should answer for `add_noise(x0, noise, t)`.

        Raises:
            ValueError: the prediction type is unknown.
        """
        check_prediction_type(prediction_type)
        if prediction_type == "epsilon":
            return noise
        if prediction_type == "sample":
            return x0
        signal, spread = self._at(t, x0)
        return signal * noise - spread * x0

    def _at(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        abar = self.alphas_cumprod.to(t.device)[t].reshape(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like), (1 - abar).sqrt().to(like)


@dataclass(frozen=True)
class FlowPath:
    """The straight path x_s = (1 - s) x_0 + s noise of flow matching (Lipman et al. 2023).

    A step t is what the network is given, s times `num_train_timesteps`.
    """

    num_train_timesteps: int

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """`count` steps to train on, (count,) float32 on the CPU, s uniform in (0, 1]."""
        return (1 - torch.rand(count, generator=generator)) * self.num_train_timesteps

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Go from `x0` (B, ...) towards `noise` of its shape up to step `t` (B,)."""
        s = (t / self.num_train_timesteps).to(x0).reshape(-1, *[1] * (x0.ndim - 1))
        return (1 - s) * x0 + s * noise

    def target(
        self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """The velocity noise - x_0, whatever the prediction type."""
        return noise - x0


def check_prediction_type(prediction_type: str) -> None:
    """Refuse a prediction type that is not one of `PREDICTION_TYPES`, listing them."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}; choose one of "
            + ", ".join(PREDICTION_TYPES)
        )
