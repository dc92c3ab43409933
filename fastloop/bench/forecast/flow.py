"""CacheFlow as a forecaster, and the same flow without its cache."""

from __future__ import annotations

from dataclasses import asdict

import torch

from fastloop.bench.forecast.config import CacheFlowForecasterConfig
from fastloop.bench.forecast.events import Event
from fastloop.bench.forecast.forecasters import Forecaster, straight_on
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.cacheflow.training import build_trainer
from fastloop.policies.rng import Rng
from fastloop.policies.training import Trainer

__all__ = ["CachedFlow", "UncachedFlow", "differences", "flow_trainer"]


def expected(past: torch.Tensor, steps: int, straight: bool) -> torch.Tensor:
    """(A, T, F) what futures are learned as differences from: going straight on from the past
    (A, P, F), so that a cached future fits whoever walks at another speed; or staying.

    Densities are those of the futures themselves, as it is a shift.
    """
    return straight_on(past, steps) if straight else past[:, -1:].expand(-1, steps, -1)


def differences(train: Samples, straight: bool) -> Samples:
    """What is learned and cached of trajectories: how futures differ from what is `expected`."""
    ahead = expected(train.history, train.future.shape[1], straight)
    return Samples(train.history, train.future - ahead)


def flow_trainer(
    config: CacheFlowForecasterConfig, train: Samples, device: str, digest: str
) -> Trainer:
    """What trains flow and mixture; arguments as of `diffusion_trainer`.

    Raises:
        ValueError: no such model.
    """
    try:
        sizes = CacheFlowConfig(**config.model)
    except TypeError as error:
        have = ", ".join(asdict(CacheFlowConfig()))
        raise ValueError(f"no flow of cacheflow.model={config.model}; have: {have}") from error
    torch.manual_seed(config.train.seed)
    train = differences(train, config.straight)
    model = CacheFlowModel.new(sizes, train).to(device)
    facts = {"data": digest, "straight": config.straight}
    return build_trainer(model, train, config.train, facts=facts)


class UncachedFlow(Forecaster):
    """Samples of the mixture, through the flow.

    Args:
        flow: the trained model with its table, both of `differences`.
        straight: from which.
    """

    def __init__(self, flow: CacheFlow, straight: bool) -> None:
        self.flow = flow
        self.straight = straight

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        return self._ahead(past) + self.flow.uncached_forecast(past, samples, rng).samples.cpu()

    def log_prob(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """(A,) nats, of a density per m^(T F), through the flow."""
        return self.flow.log_prob(past, future - self._ahead(past)[:, 0]).cpu()

    def _ahead(self, past: torch.Tensor) -> torch.Tensor:
        """(A, 1, T, F) what is expected."""
        return expected(past, self.flow.table.futures.shape[1], self.straight)[:, None]


class CachedFlow(UncachedFlow):
    """Samples and events of the cached futures of training."""

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        return self._ahead(past) + self.flow.forecast(past, samples, rng).samples.cpu()

    def event_probabilities(
        self, past: torch.Tensor, futures: torch.Tensor, event: Event
    ) -> torch.Tensor:
        """(A,) by the weights of all cached futures; the `futures` that were drawn are not
        needed."""
        happens = event(past[:, None], self._ahead(past) + self.flow.table.futures.cpu())
        mixture = self.flow.condition(past)
        return self.flow.event_probability(mixture, happens[:, None])[:, 0].clamp(0, 1).cpu()
