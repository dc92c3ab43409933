"""Closed loop: the arms that are tested beside the policy as published, over the same episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastloop.accel.samplers.base import describe
from fastloop.arms import arm_digest
from fastloop.bench.arms import BenchArm
from fastloop.bench.config import BenchConfig
from fastloop.progress import bar
from fastloop.run_folder import config_digest
from fastloop.setup import Setup
from fastloop.sims.findings import Comparison, Coverage, analyze
from fastloop.sims.run_result import Progress, RunResult
from fastloop.sims.runner import RunConfig
from fastloop.sims.runner import run as run_closed_loop
from fastloop.sims.summary import RunSummary
from fastloop.sims.worklist import WorkItem

__all__ = ["Success", "compare_success", "run_config"]

# What decides an episode, and how many there are: adding pairs until a test passes is no test.
DECISIVE = ("policy", "sim", "seed", "plan_batch", "episodes", "first_seed")


@dataclass(frozen=True)
class Success:
    """What the closed loop showed.

    Attributes:
        comparisons: arm to its comparison with the policy as published.
        coverage: of the planned episodes.
        interrupted: stopped by Ctrl-C.
    """

    comparisons: Mapping[str, Comparison]
    coverage: Coverage
    interrupted: bool


def compare_success(
    config: BenchConfig, setup: Setup, arms: Sequence[BenchArm], folder: Path, console: Console
) -> Success:
    """Run `config.episodes` episodes of every arm, the policy as published first.

    What an earlier process has finished in `folder` is not run again.
    """
    task = setup.sim.env_spec.name
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    items = [WorkItem(task, seed) for seed in seeds]
    results: dict[str, RunResult] = {}
    for arm in arms:
        results[arm.name] = _run(arm, config, setup, items, folder, console)
        if results[arm.name].interrupted:
            break
    found = analyze(
        RunSummary(
            verb="bench",
            arms=[result.arm(name) for name, result in results.items()],
            planned=[item.key for item in items],
            margin=config.margin,
        )
    )
    return Success(
        {comparison.candidate: comparison for comparison in found.comparisons},
        found.coverage,
        any(result.interrupted for result in results.values()),
    )


def run_config(config: BenchConfig) -> RunConfig:
    """How the episodes are run."""
    return RunConfig(
        num_envs=config.num_envs,
        plan_batch=config.plan_batch,
        seed=config.seed,
        retries=config.retries,
        step_timeout_s=config.step_timeout_s,
    )


def _run(
    arm: BenchArm,
    config: BenchConfig,
    setup: Setup,
    items: Sequence[WorkItem],
    folder: Path,
    console: Console,
) -> RunResult:
    others = [f.name for f in dataclasses.fields(config) if f.name not in DECISIVE]
    world = config_digest(config, without=tuple(others))
    with bar(f"closed loop, {arm.name}", len(items), console) as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, f"success {progress.successes / max(progress.done, 1):.0%}")

        return run_closed_loop(
            setup.driving(arm.policy),
            {items[0].task: setup.sim_config},
            items,
            run_dir=folder / "episodes" / arm.name,
            digest=f"{world}/{arm.name}/{arm_digest(arm.policy)}/{describe(arm.policy.sampler)}",
            config=run_config(config),
            arm=arm.name,
            progress=show,
        )
