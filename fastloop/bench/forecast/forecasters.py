"""Who forecasts: what the bench asks of each, and those that need no network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.distributions import MultivariateNormal

from fastloop.bench.forecast.events import Event
from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.rng import Rng

__all__ = ["ConstantVelocity", "Forecaster", "GaussianVelocity", "straight_on"]


class Forecaster(ABC):
    """Says where agents will be, all of A agents at once.

    A past is (A, P, F) float32 m, a future (A, T, F) in the same frame.
    """

    @abstractmethod
    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """Futures (A, N, T, F) m on the CPU, N = `samples`, or 1 of a forecaster that knows only
        one; `rng` has a key for each agent."""

    def log_prob(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor | None:
        """(A,) nats, of the forecaster's own density, or None where it has none."""
        return None

    def event_probabilities(
        self, past: torch.Tensor, futures: torch.Tensor, event: Event
    ) -> torch.Tensor:
        """(A,) the probability of `event`, by default its share of the `futures` (A, N, T, F) that
        were forecast."""
        return event(past[:, None], futures).float().mean(1)


def straight_on(past: torch.Tensor, steps: int) -> torch.Tensor:
    """(A, T, F): the last step of the past (A, P, F) over and over."""
    ahead = torch.arange(1, steps + 1, dtype=past.dtype, device=past.device)
    last = past[:, -1:]
    return torch.addcmul(last, last - past[:, -2:-1], ahead[:, None])


class ConstantVelocity(Forecaster):
    """The last step over and over, and nothing else (Schoeller et al., RA-L 2020).

    Args:
        steps: T.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`; one future."""
        return straight_on(past, self.steps)[:, None]


class GaussianVelocity(Forecaster):
    """A Gaussian about constant velocity, the same for everybody: what is left of it in training.

    It shows what best-of-N figures are without any forecast of who goes where.

    Args:
        train: its errors' mean and covariance are taken over these.
    """

    def __init__(self, train: Trajectories) -> None:
        past, future = torch.from_numpy(train.past), torch.from_numpy(train.future)
        self.steps, self.width = future.shape[1:]
        error = (future - straight_on(past, self.steps)).flatten(1).double()
        covariance = error.T.cov() + 1e-6 * torch.eye(error.shape[1], dtype=torch.float64)
        self.error = MultivariateNormal(error.mean(0), covariance)

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        noise = rng.normal((samples, self.steps * self.width)).double()
        error = self.error.mean + noise @ self.error.scale_tril.T
        return (
            straight_on(past, self.steps)[:, None]
            + error.unflatten(-1, (self.steps, self.width)).float()
        )

    def log_prob(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """(A,) nats, of a density per m^(T F)."""
        return self.error.log_prob((future - straight_on(past, self.steps)).flatten(1).double())
