"""Forecasts from the cache, and beside them those of the flow that it replaces."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastloop.accel.flow_table import queries
from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.table import FlowTable
from fastloop.policies.cacheflow.cache import build_table
from fastloop.policies.cacheflow.model import CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples, condition_of
from fastloop.policies.cacheflow.single import SingleAgent
from fastloop.policies.rng import Rng

__all__ = ["CacheFlow", "Forecast"]

STREAM = "cacheflow"


class Forecast(NamedTuple):
    """N futures of each of A agents.

    Attributes:
        samples: (A, N, T, F) in the agent's frame.
        log_prob: (A, N) log-density of each, per unit of all its T F numbers.
    """

    samples: torch.Tensor
    log_prob: torch.Tensor


class CacheFlow:
    """A trained model and its table, on one device.

    A condition is (A, O, H), in float32, with a command (A, C) and neighbors (A, P, ...) where they
    were learned; all raise as `CacheFlowModel.condition`.

    Args:
        model: its weights; put in evaluation mode.
        table: of its flow.

    Raises:
        ValueError: the table is not of such a model.
    """

    def __init__(self, model: CacheFlowModel, table: FlowTable) -> None:
        held = table.z.shape[1], tuple(table.futures.shape[1:])
        if held != (model.config.dims, model.shapes["future"]):
            raise ValueError(
                f"the table holds {held[0]} numbers a future of shape {held[1]}, the model makes "
                f"{model.config.dims} of {model.shapes['future']}: build its own table"
            )
        self.model = model.eval().requires_grad_(False)
        self.table = table
        self.single = SingleAgent(model.encoder, table)

    @classmethod
    def build(
        cls, model: CacheFlowModel, samples: Samples, *, feasible: torch.Tensor | None = None
    ) -> CacheFlow:
        """With the table of the futures of `samples`, see `build_table`."""
        return cls(model, build_table(model.eval(), samples, feasible=feasible))

    @torch.inference_mode()
    def condition(
        self,
        history: torch.Tensor,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Mixture:
        """The mixtures of A agents, which the methods below share."""
        device = self.table.z.device
        command, neighbors = (p if p is None else p.to(device) for p in (command, neighbors))
        given = history.to(device), command, neighbors
        self.model.check(*given)
        reads = self.single.condition if self._single(history) else self.model.encoder
        return reads(*given)

    def forecast(
        self,
        history: torch.Tensor,
        samples: int,
        rng: Rng,
        *,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Forecast:
        """`samples` cached futures of each agent, with noise from `rng` (A keys)."""
        return self.retrieve(self.condition(history, command, neighbors), samples, rng)

    @torch.inference_mode()
    def retrieve(self, mixture: Mixture, samples: int, rng: Rng) -> Forecast:
        """See `forecast`."""
        table, noise = self.table, self._noise(rng, samples)
        if self._single(noise):
            places, log_base = self.single.draw(mixture, noise)
        else:
            places = queries.draw(table, mixture, noise)
            log_base = mixture.log_prob(table.z[places])
        return Forecast(table.futures[places], log_base - table.log_det[places])

    @torch.inference_mode()
    def uncached_forecast(
        self,
        history: torch.Tensor,
        samples: int,
        rng: Rng,
        *,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Forecast:
        """`samples` futures that the flow makes of the same points that `forecast` looks the
        neighbors of up for."""
        mixture = self.condition(history, command, neighbors)
        z = mixture.sample(self._noise(rng, samples).to(mixture.means))
        coordinates, log_det = self.model.flow(z)
        futures = self.model.factorization.expand(coordinates)
        volume = self.model.factorization.log_volume(futures)
        return Forecast(futures, mixture.log_prob(z) - log_det + volume)

    @torch.inference_mode()
    def log_prob(
        self,
        history: torch.Tensor,
        future: torch.Tensor,
        *,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """log p(x | c), per unit of all T F numbers, of any future (A, T, F) or futures
        (A, N, T, F), in the cache or not: (A,) or (A, N)."""
        mixture = self.condition(history, command, neighbors)
        several = future if future.ndim == 4 else future[:, None]
        found = self.model.log_prob(mixture, several.to(mixture.means))
        return found if future.ndim == 4 else found[:, 0]

    @torch.inference_mode()
    def log_weights(self, mixture: Mixture) -> torch.Tensor:
        """(A, K) how much likelier each cached future is than it is in general."""
        return queries.log_weights(self.table, queries.log_base(self.table, mixture))

    @torch.inference_mode()
    def event_probability(self, mixture: Mixture, events: torch.Tensor) -> torch.Tensor:
        """(A, E) the probabilities of events (E, K) or (A, E, K) among ``table.futures``."""
        return queries.event_probability(self.log_weights(mixture), events.to(self.table.z.device))

    @torch.inference_mode()
    def novelty(self, history: torch.Tensor, neighbors: torch.Tensor | None = None) -> torch.Tensor:
        """(A,) how unlike those of training pasts (A, O, H) and neighbors (A, P, ...) are; usual
        ones lie below 1."""
        device = self.table.z.device
        around = neighbors if neighbors is None else neighbors.to(device)
        return self.model.familiarity(history.to(device), around)

    @torch.inference_mode()
    def coverage(self, mixture: Mixture) -> torch.Tensor:
        """(A,) share of the cached futures that carry the weight, 0 to 1: low where the mixture
        lies where there are none."""
        return queries.effective_sample_size(self.log_weights(mixture)) / len(self.table)

    def usual_coverage(self, samples: Samples, *, share: float = 1e-3, most: int = 2048) -> float:
        """The coverage below which that share of the situations of `samples` lies.

        Args:
            samples: of which `most` are looked at, evenly over all.
            share: 0 to 1.
        """
        rows = torch.linspace(0, len(samples) - 1, min(most, len(samples))).round().long()
        known = condition_of(samples.rows(rows))
        some = [
            {name: part[n : n + 64] for name, part in known.items()} for n in range(0, most, 64)
        ]
        found = [self.coverage(self.condition(**each)) for each in some if len(each["history"])]
        return float(torch.cat(found).quantile(share))

    def _single(self, agents: torch.Tensor) -> bool:
        return len(agents) == 1 and self.table.z.is_cpu

    def _noise(self, rng: Rng, samples: int) -> torch.Tensor:
        return rng.normal((samples, 1 + self.table.z.shape[-1]), stream=STREAM)
