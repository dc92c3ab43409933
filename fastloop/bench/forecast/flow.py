"""CacheFlow as a forecaster, and the same flow without its cache."""

from __future__ import annotations

from dataclasses import asdict

import torch

from fastloop.bench.forecast.config import CacheFlowForecasterConfig
from fastloop.bench.forecast.events import Event
from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.cacheflow.training import build_trainer
from fastloop.policies.rng import Rng
from fastloop.policies.training import Trainer

__all__ = ["CachedFlow", "UncachedFlow", "flow_trainer"]


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
    model = CacheFlowModel.new(sizes, train).to(device)
    return build_trainer(model, train, config.train, facts={"data": digest})


class UncachedFlow(Forecaster):
    """Samples of the mixture, through the flow.

    Args:
        flow: the trained model with its table.
    """

    def __init__(self, flow: CacheFlow) -> None:
        self.flow = flow

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        return self.flow.uncached_forecast(past, samples, rng).samples.cpu()

    def log_prob(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """(A,) nats, of a density per m^(T F), through the flow."""
        return self.flow.log_prob(past, future).cpu()


class CachedFlow(UncachedFlow):
    """Samples and events of the cached futures of training."""

    def forecast(self, past: torch.Tensor, samples: int, rng: Rng) -> torch.Tensor:
        """See `Forecaster`."""
        return self.flow.forecast(past, samples, rng).samples.cpu()

    def event_probabilities(
        self, past: torch.Tensor, futures: torch.Tensor, event: Event
    ) -> torch.Tensor:
        """(A,) by the weights of all cached futures; the `futures` that were drawn are not
        needed."""
        happens = event(past[:, None], self.flow.table.futures.cpu()[None])
        mixture = self.flow.condition(past)
        return self.flow.event_probability(mixture, happens[:, None])[:, 0].clamp(0, 1).cpu()
