"""From a configuration to planner, judge and moments; then the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastloop.bench.decode.moments import recorded
from fastloop.bench.plans.alarm import alarm
from fastloop.bench.plans.choice import FIGURES, Choices, choose
from fastloop.bench.plans.config import PlansBenchConfig
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.plans import Plans
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.datasets.windows import Windows
from fastloop.policies.best_of import BestOf
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.cacheflow.scorer import PlanScorer
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.load import load_policy
from fastloop.policies.prepare import prepare
from fastloop.policies.selectors import Density
from fastloop.policies.spec import PolicySpec
from fastloop.progress import bar
from fastloop.run_folder import make_run_dir, write_result
from fastloop.sims.report.console import text_table
from fastloop.sims.report.text import milliseconds
from fastloop.sims.stats import Interval, latency_summary
from fastloop.sims.targets import build

__all__ = ["run"]

ALARMS = {
    "novel": "moments called novel",
    "novel_other_side": "the same, left and right changed",
    "auroc_novelty": "AUROC of novelty",
    "auroc_coverage": "AUROC of little coverage",
}


def run(config: PlansBenchConfig) -> int:
    """Measure, write the run folder and print the tables.

    Returns:
        0.

    Raises:
        ValueError: the policies are not of the kinds that are needed, or read what the drives do
            not hold.
    """
    console = Console()
    if config.moments is not None and config.moments < 1:
        raise ValueError(f"moments must be at least 1, or null for all; got {config.moments}")
    planner, judge = _policies(config)
    given = build(config.dataset, "dataset")
    if not isinstance(given, Iterable):
        raise ValueError(
            f"dataset: {config.dataset['_target_']} holds no episodes to look at; say "
            "dataset=drives or dataset=robomimic"
        )
    made = list(given)
    keys = list({**planner.spec.inputs, **judge.spec.inputs})
    plans = _cut(made, keys, planner.spec)
    drive = np.concatenate([[n if one.seed is None else one.seed] * len(one.actions)
                            for n, one in enumerate(made)])  # fmt: skip
    count = min(config.moments or len(plans), len(plans))
    places = np.linspace(0, len(plans) - 1, count).round().astype(np.int64)
    folder = make_run_dir("bench", config.run_dir)
    prepare(planner, threads=config.policy.threads)
    with bar("plans", count, console) as advance:
        choices = choose(
            planner, judge, recorded(plans, keys, count), config.seed,
            lambda done: advance(done, ""),
        )  # fmt: skip
    alarms = {}
    if isinstance(plans, Plans):
        with console.status("alarms"):
            alarms = alarm(judge, plans, places, drive[places])
    unit = planner.spec.action.unit if planner.policy.model.cumulative else "normalized"
    return _report(choices, alarms, drive[places], unit, config, folder, console)


def _cut(made: list[Demonstration], keys: list[str], spec: PolicySpec) -> Windows:
    """Every frame with what is held against a plan there: the whole plan of who drives by
    waypoints, of others the chunk that was done."""
    if spec.action.kind == "waypoint":
        return Plans.cut(made, keys)
    steps = {"n_obs_steps": spec.n_obs_steps, "horizon": spec.horizon}
    return Windows.of(made, keys, lags=spec.lags, **steps)


def _policies(config: PlansBenchConfig) -> tuple[BestOf, CacheFlowPolicy]:
    judge = load_policy(config.judge)
    if not isinstance(judge, CacheFlowPolicy):
        raise ValueError(f"judge={config.judge} is no CacheFlow policy")
    sampler = {k: v for k, v in dataclasses.asdict(config.policy.sampler).items() if v is not None}
    planner = load_policy(config.policy.checkpoint, sampler=sampler)
    if not isinstance(planner, DiffusionPolicy):
        raise ValueError(f"policy.checkpoint={config.policy.checkpoint} does not denoise plans")
    if judge.spec.lags != planner.spec.lags:
        raise ValueError(
            f"policy.checkpoint={config.policy.checkpoint} sees frames {list(planner.spec.lags)} "
            f"ticks ago, judge={config.judge} others, {list(judge.spec.lags)}: train it with the "
            "same network.n_obs_steps"
        )
    return BestOf(planner, Density(PlanScorer(judge)), config.policy.samples), judge


def _report(
    choices: Choices, alarms: dict[str, Interval], drives: Any, unit: str, config: PlansBenchConfig,
    folder: Any, console: Console,
) -> int:  # fmt: skip
    away = choices.distances
    beyond = {name: of - away["mean"] for name, of in away.items() if name != "mean"}
    found = {name: _mean(of, drives) for name, of in away.items()}
    gaps = {name: _mean(of, drives) for name, of in beyond.items()}
    metrics = {
        f"ade_{name}": {"unit": unit, **dataclasses.asdict(of)} for name, of in found.items()
    }
    metrics |= {
        f"ade_difference_{name}": {"unit": unit, **dataclasses.asdict(of)}
        for name, of in gaps.items()
    }
    metrics |= {name: {"unit": "1", **dataclasses.asdict(of)} for name, of in alarms.items()}
    timed = {"planner": choices.planner_ms, "judge": choices.judge_ms}
    latency = {name: latency_summary(ms, [True] + [False] * (len(ms) - 1))
               for name, ms in timed.items()}  # fmt: skip
    metrics |= {
        f"latency_{of}_{name}": {"unit": "ms", "n": it.n, "value": getattr(it, of)}
        for name, it in latency.items()
        for of in ("p50", "p90", "p99", "max")
    }
    facts = {"drives": len(np.unique(drives)), "threads": torch.get_num_threads()}
    write_result(folder, "bench", config, metrics, **facts)
    rows = [
        [FIGURES[name], *_cells(of), *(_cells(gaps[name]) if name in gaps else ("", ""))]
        for name, of in found.items()
    ]
    head = ("plan", f"ADE, {unit}", "95% interval", "beyond one in the mean", "95% interval")
    where = f"{len(drives)} moments of {facts['drives']} episodes"
    console.print(text_table(f"Of {config.policy.samples} plans, at {where}", head, rows))
    rows = [[ALARMS[name], *_cells(of)] for name, of in alarms.items()]
    if rows:
        console.print(text_table("The alarm", ("figure", "value", "95% interval"), rows))
    rows = [[name, *map(milliseconds, (it.p50, it.p90, it.p99, it.max))]
            for name, it in latency.items()]  # fmt: skip
    console.print(text_table("Latency", ("who", "p50", "p90", "p99", "max"), rows))
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _mean(values: Any, drives: Any) -> Interval:
    return Interval(*mean_interval(values, drives), n=len(values))


def _cells(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}"
