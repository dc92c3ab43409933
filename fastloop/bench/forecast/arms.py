"""The arms of the bench by name, trained where they learn."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fastloop.bench.forecast.config import ForecastBenchConfig
from fastloop.bench.forecast.diffusion import DiffusionForecaster, diffusion_trainer
from fastloop.bench.forecast.forecasters import ConstantVelocity, Forecaster, GaussianVelocity
from fastloop.bench.forecast.training import data_digest, train
from fastloop.datasets.trajectories import TrajectoryData
from fastloop.sims.interrupts import Interrupts

__all__ = ["ARMS", "make_arms"]

ARMS = ("constant_velocity", "gaussian_velocity", "diffusion")


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
    made: dict[str, Forecaster] = {}
    for name in config.arms:
        if name == "constant_velocity":
            made[name] = ConstantVelocity(data.test.future.shape[1])
        elif name == "gaussian_velocity":
            made[name] = GaussianVelocity(data.train)
        else:
            digest = data_digest(data.train)
            trainer = diffusion_trainer(config.diffusion, data.train, config.device, digest)
            if not train(name, trainer, folder, config.save_every, console, stop):
                return None
            made[name] = DiffusionForecaster(trainer.ema.averaged, config.diffusion)
    return made
