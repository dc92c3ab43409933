"""From a configuration to the findings of `fastloop bench server`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fastloop.bench.server.bad import bad_clients
from fastloop.bench.server.clients import Asked, ask_all
from fastloop.bench.server.config import ServerBenchConfig
from fastloop.bench.server.served import serving
from fastloop.run_folder import make_run_dir, write_result

__all__ = ["run"]

QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def run(config: ServerBenchConfig) -> int:
    """Measure, write the run folder and print the table.

    Returns:
        0, or 1 where a client has got no answer in time.
    """
    _check(config)
    console = Console()
    folder = make_run_dir("bench", config.run_dir)
    found: dict[str, Asked] = {}
    with serving(config) as port:
        rate = (config.clients, config.hz, config.seconds)
        with console.status(f"{config.clients} clients at {config.hz:g} Hz"):
            found["alone"] = ask_all(port, *rate)
        bad = config.stalling + config.garbage
        if bad:
            with (
                console.status(f"the same beside {bad} bad ones"),
                bad_clients(port, config.stalling, config.garbage),
            ):
                found["beside_bad_clients"] = ask_all(port, *rate)
    write_result(folder, "bench", config, _metrics(found))
    console.print(_table(found))
    for asked in found.values():
        for error in sorted(set(asked.errors))[:5]:
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return int(any(asked.drops for asked in found.values()))


def _check(config: ServerBenchConfig) -> None:
    if config.clients < 1 or min(config.stalling, config.garbage) < 0:
        raise ValueError(
            "clients must be at least 1, stalling and garbage 0 or more; got "
            f"{config.clients}, {config.stalling} and {config.garbage}"
        )
    if not (config.hz > 0 and math.isfinite(config.hz)) or not config.seconds > 1:
        raise ValueError(
            "hz must be above 0, and seconds above 1, the first of which is not counted; got "
            f"{config.hz} and {config.seconds}"
        )
    if not config.plan_ms >= 0:
        raise ValueError(f"plan_ms must be 0 or more, got {config.plan_ms}")


def _metrics(found: Mapping[str, Asked]) -> dict[str, dict[str, Any]]:
    metrics: dict[str, dict[str, Any]] = {}
    for name, asked in found.items():
        count = {"unit": "ticks", "n": asked.ticks}
        metrics[f"drops/{name}"] = {"value": asked.drops, **count}
        metrics[f"late/{name}"] = {"value": asked.late, **count}
        for quantile, ms in _latencies(asked).items():
            metrics[f"latency_{quantile}/{name}"] = {
                "value": ms, "unit": "ms", "n": len(asked.latencies_ms),
            }  # fmt: skip
    return metrics


def _latencies(asked: Asked) -> dict[str, float]:
    taken = asked.latencies_ms or [math.nan]
    return {name: float(np.percentile(taken, place)) for name, place in QUANTILES.items()}


def _table(found: Mapping[str, Asked]) -> Table:
    table = Table(title="policy server")
    for column in ("clients", "ticks", "drops", "p50 ms", "p90 ms", "p99 ms", "max ms", "a plan"):
        table.add_column(column, justify="left" if column == "clients" else "right")
    for name, asked in found.items():
        batch = f"{np.mean(asked.batches):.1f}" if asked.batches else "-"
        latencies = [f"{ms:.1f}" for ms in _latencies(asked).values()]
        told = name.replace("_", " ")
        table.add_row(told, str(asked.ticks), str(asked.drops), *latencies, batch)
    return table
