"""From a configuration to the findings: training, forecasts, scores, latencies; then the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fastloop.bench.forecast.arms import ARMS, make_arms
from fastloop.bench.forecast.config import ForecastBenchConfig
from fastloop.bench.forecast.findings import CACHED, ForecastFindings, metrics
from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.bench.forecast.measure import Scores, event_intervals, intervals, score
from fastloop.bench.forecast.report import caption, print_tables, render_forecast_bench, tables
from fastloop.bench.forecast.timing import time_in_turns, time_queries
from fastloop.bench.forecast.training import data_digest
from fastloop.config.ranges import at_least
from fastloop.datasets.scores.sampled import alike
from fastloop.datasets.trajectories import Trajectories, TrajectoryData
from fastloop.progress import bar
from fastloop.run_folder import config_yaml, make_run_dir, provenance, write_result
from fastloop.sims.interrupts import catch_interrupts
from fastloop.sims.stats import Interval, LatencySummary, latency_summary, ratio_of_medians
from fastloop.sims.targets import build

__all__ = ["run"]


def run(config: ForecastBenchConfig) -> int:
    """Train, measure, write the run folder and print the tables.

    Returns:
        0, or 130 after Ctrl-C in training; the same command with this run folder then goes on.
    """
    _check(config)
    console = Console()
    if config.threads:
        torch.set_num_threads(config.threads)
    with console.status("reading trajectories"):
        data = build(config.dataset, "dataset")
    if not isinstance(data, TrajectoryData):
        raise ValueError(
            f"dataset: {config.dataset['_target_']} holds no trajectories to forecast; have: "
            "eth_ucy, h36m, amass"
        )
    folder = make_run_dir("bench", config.run_dir)
    with catch_interrupts() as stop:
        arms = make_arms(config, data, folder, console, stop)
    if arms is None:
        told = f"stopped; the same command with run_dir={folder} goes on from here"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130
    test = _chosen(data.test, config.limit)
    scores = _score(arms, test, data.same_situation, config, console)
    timed = [_time(arms, test, agents, config, console) for agents in (1, config.timed_agents)]
    asked = {
        name: latency_summary(ms, [True] + [False] * (len(ms) - 1))
        for name, ms in time_queries(config.repeats, config.device).items()
    }
    with console.status("intervals"):
        found = _find(scores, timed, test)
    return _report(found, asked, data, test, config, folder, console)


def _check(config: ForecastBenchConfig) -> None:
    """Refuse what would only come out minutes later."""
    at_least(config, 1, "samples", "batch", "timed_agents", "repeats", "save_every")
    if config.drawn < config.samples:
        raise ValueError(
            f"drawn must be at least samples={config.samples}, which are the first of them; got "
            f"{config.drawn}"
        )
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"limit must be at least 1, or null for all; got {config.limit}")
    unknown = [name for name in config.arms if name not in ARMS]
    if unknown or not config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(
            f"arms must be some of {', '.join(ARMS)}, each once; got {list(config.arms)}"
        )


def _chosen(test: Trajectories, limit: int | None) -> Trajectories:
    if limit is None or limit >= len(test):
        return test
    return test[np.linspace(0, len(test) - 1, limit).round().astype(np.int64)]


def _score(
    arms: Mapping[str, Forecaster],
    test: Trajectories,
    same_situation: float,
    config: ForecastBenchConfig,
    console: Console,
) -> dict[str, Scores]:
    with console.status("looking for situations alike"):
        groups = alike(test.situation, same_situation)
    found = {}
    with bar("forecasts", len(arms) * len(test), console) as advance:
        for k, (name, forecaster) in enumerate(arms.items()):

            def told(done: int, k: int = k, name: str = name) -> None:
                advance(k * len(test) + done, name)

            found[name] = score(
                forecaster, test, groups, samples=config.samples, drawn=config.drawn,
                batch=config.batch, seed=config.seed, advance=told, judge=arms.get(CACHED),
            )  # fmt: skip
    return found


def _time(
    arms: Mapping[str, Forecaster],
    test: Trajectories,
    agents: int,
    config: ForecastBenchConfig,
    console: Console,
) -> dict[str, list[float]]:
    with bar(f"timing forecasts of {agents} in turns", config.repeats, console) as advance:
        return time_in_turns(
            arms, test, agents=agents, samples=config.samples, repeats=config.repeats,
            advance=lambda done: advance(done, ""),
        )  # fmt: skip


def _find(
    scores: Mapping[str, Scores], timed: list[dict[str, list[float]]], test: Trajectories
) -> list[ForecastFindings]:
    first, *_ = scores.values()
    found = []
    for name, own in scores.items():
        beyond = {
            key: own.columns[key] - first.columns[key]
            for key in ("min_ade", "min_fde")
            if own is not first
        }
        one, several = (
            latency_summary(ms[name], [True, False] * (len(ms[name]) // 2)) for ms in timed
        )
        found.append(
            ForecastFindings(
                name,
                intervals(own.columns, test.groups),
                event_intervals(own, test),
                intervals(beyond, test.groups),
                (one, several),
                _faster(name, timed, 1),
                _faster(name, timed, 0),
            )
        )
    return found


def _faster(name: str, timed: list[dict[str, list[float]]], call: int) -> tuple[Interval, ...]:
    """By the first or second calls of all turns."""
    if name == CACHED or CACHED not in timed[0]:
        return ()
    calls = slice(call, None, 2)
    return tuple(ratio_of_medians(ms[name][calls], ms[CACHED][calls], paired=True) for ms in timed)


def _report(
    found: list[ForecastFindings],
    asked: Mapping[str, LatencySummary],
    data: TrajectoryData,
    test: Trajectories,
    config: ForecastBenchConfig,
    folder: Path,
    console: Console,
) -> int:
    parts = ("train", "val", "test")
    facts = {
        "data": data.name,
        "trajectories": {part: len(getattr(data, part)) for part in parts},
        "scored": len(test),
        "digests": {part: data_digest(getattr(data, part)) for part in parts},
        "device": config.device,
        "threads": torch.get_num_threads(),
    }
    write_result(folder, "bench", config, metrics(found, asked, config.timed_agents), **facts)
    made, told = tables(found, asked, config.timed_agents), caption(config.samples, config.drawn)
    about = f"{data.name}, {len(test)} trajectories"
    page = folder / "bench.html"
    text = render_forecast_bench(made, told, about, provenance(**facts), config_yaml(config))
    page.write_text(text, encoding="utf-8")
    print_tables(made, told, console)
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return 0
