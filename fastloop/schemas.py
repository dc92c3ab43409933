"""Which schema checks the configuration of which verb."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from fastloop.bench.config import BenchConfig, DecodeBenchConfig, TrainBenchConfig
from fastloop.bench.forecast.config import ForecastBenchConfig
from fastloop.bench.plans.config import PlansBenchConfig
from fastloop.bench.server.config import ServerBenchConfig
from fastloop.bench.shape.config import ShapeBenchConfig
from fastloop.bench.vehicle.config import VehicleBenchConfig
from fastloop.bench.window.config import WindowBenchConfig
from fastloop.config import (
    CalibrateConfig,
    EvalConfig,
    InfoConfig,
    RecordConfig,
    RunVerbConfig,
    ScoreConfig,
    ServeConfig,
    TrainVerbConfig,
)

__all__ = ["SCHEMAS", "TASK_SCHEMAS", "register"]

SCHEMAS = {
    "eval": EvalConfig,
    "calibrate": CalibrateConfig,
    "bench": BenchConfig,
    "record": RecordConfig,
    "train": TrainVerbConfig,
    "info": InfoConfig,
    "score": ScoreConfig,
    "serve": ServeConfig,
    "run": RunVerbConfig,
}
# Of verbs that are about several things.
TASK_SCHEMAS = {
    "bench_decode": DecodeBenchConfig,
    "bench_forecast": ForecastBenchConfig,
    "bench_plans": PlansBenchConfig,
    "bench_server": ServerBenchConfig,
    "bench_shape": ShapeBenchConfig,
    "bench_train": TrainBenchConfig,
    "bench_window": WindowBenchConfig,
    "bench_vehicle": VehicleBenchConfig,
}


def register() -> None:
    """Make the schemas known to Hydra, as ``<verb>_schema``."""
    store = ConfigStore.instance()
    for verb, schema in (SCHEMAS | TASK_SCHEMAS).items():
        store.store(name=f"{verb}_schema", node=schema)
