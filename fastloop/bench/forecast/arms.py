"""The arms of the bench by name, trained where they learn."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from fastloop.bench.forecast.config import ForecastBenchConfig
from fastloop.bench.forecast.diffusion import DiffusionForecaster, diffusion_trainer
from fastloop.bench.forecast.flow import (
    CachedFlow,
    UncachedFlow,
    differences,
    flow_trainer,
)
from fastloop.bench.forecast.forecasters import ConstantVelocity, Forecaster, GaussianVelocity
from fastloop.bench.forecast.training import data_digest, train
from fastloop.datasets.trajectories import TrajectoryData
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.samples import Samples
from fastloop.sims.interrupts import Interrupts

__all__ = ["ARMS", "make_arms"]

FLOWS = {"cacheflow": CachedFlow, "uncached_flow": UncachedFlow}
ARMS = ("constant_velocity", "gaussian_velocity", "diffusion", *FLOWS)


def make_arms(
    config: ForecastBenchConfig,
    data: TrajectoryData,
    folder: Path,
    console: Console,
    stop: Interrupts,
) -> dict[str, Forecaster] | None:
    """The forecasters that `config` names, None where somebody asked to stop.

    Raises:
        ValueError: an arm cannot be built or trained.
    """
    samples = Samples(torch.from_numpy(data.train.past), torch.from_numpy(data.train.future))
    learned = samples, config.device, data_digest(data.train)
    straight = config.cacheflow.straight
    # Built before any of them is trained: what is wrong with one is told at once.
    trainers = {}
    if "diffusion" in config.arms:
        trainers["diffusion"] = diffusion_trainer(config.diffusion, *learned)
    if set(FLOWS) & set(config.arms):
        trainers["cacheflow"] = flow_trainer(config.cacheflow, *learned)
    made: dict[str, Forecaster] = {
        "constant_velocity": ConstantVelocity(data.train.future.shape[1])
    }
    if "gaussian_velocity" in config.arms:
        made["gaussian_velocity"] = GaussianVelocity(data.train)
    for name, trainer in trainers.items():
        if not train(name, trainer, folder, config.save_every, console, stop):
            return None
        averaged = trainer.ema.averaged
        if name == "diffusion":
            made[name] = DiffusionForecaster(averaged, config.diffusion)
        else:
            with console.status("caching futures"):
                flow = CacheFlow.build(averaged, differences(samples, straight))
            made |= {name: forecaster(flow, straight) for name, forecaster in FLOWS.items()}
    return {name: made[name] for name in config.arms}
