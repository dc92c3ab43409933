"""The structured configuration of the forecasting bench; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.training import TrainConfig

__all__ = ["CacheFlowForecasterConfig", "DiffusionForecasterConfig", "ForecastBenchConfig"]


@dataclass
class DiffusionForecasterConfig:
    """A denoiser of futures.

    Attributes:
        arch: arguments of `TransformerForDiffusion`, without the widths that follow from the data.
        sampler: how noise is added in training and taken away afterwards.
        train: how.
    """

    arch: dict[str, Any] = field(default_factory=dict)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class CacheFlowForecasterConfig:
    """A conditional flow and its cache.

    Attributes:
        model: fields of `fastloop.policies.cacheflow.model.CacheFlowConfig`, by name.
        straight: futures are learned as differences from going straight on, as those of walkers
            should; false for bodies, whose joints sway: from staying.
        train: how.
    """

    model: dict[str, Any] = field(default_factory=dict)
    straight: bool = True
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class ForecastBenchConfig:
    """Forecasters beside each other on what they were not trained on: errors, densities, event
    probabilities, latencies.

    Attributes:
        dataset: of `fastloop.datasets.trajectories.TrajectoryData`: ``dataset=eth_ucy
            dataset.path=... dataset.scene=zara1``.
        arms: who forecasts; the others are compared with the first.
        diffusion: of the arm of that name.
        cacheflow: of the arms `cacheflow` and `uncached_flow`, which have the same weights.
        samples: N, of which the best counts.
        drawn: samples that densities and event probabilities are taken from; the first N of them
            are those of which the best counts.
        batch: trajectories forecast at a time.
        limit: trajectories to score, evenly over all; null for all of them.
        timed_agents: agents at once whose latency is taken beside that of one.
        repeats: turns in which each arm's forecasts are timed, one cold and one warm.
        save_every: steps between saved states, from which a killed run goes on.
        threads: torch threads; 0 leaves them.
        seed: of the samples.
    """

    dataset: dict[str, Any] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)
    diffusion: DiffusionForecasterConfig = field(default_factory=DiffusionForecasterConfig)
    cacheflow: CacheFlowForecasterConfig = field(default_factory=CacheFlowForecasterConfig)
    samples: int = 20
    drawn: int = 100
    batch: int = 64
    limit: int | None = None
    timed_agents: int = 16
    repeats: int = 30
    save_every: int = 1000
    device: str = "cpu"
    threads: int = 0
    seed: int = 0
    run_dir: str | None = None
