"""`fastloop bench denoise`: every way to denoise sooner, gated by parity and by success; and
`decode`, `forecast`, `plans`, `server`, `shape`, `train`, `vehicle` and `window`: see the modules
of these names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastloop.arms import loop_threads, time_plans
from fastloop.bench import training
from fastloop.bench.action_error import decide
from fastloop.bench.arms import PUBLISHED, BenchArm, arm_names, make_arm, published_arm
from fastloop.bench.chunks import Chunks
from fastloop.bench.config import BenchConfig, DecodeBenchConfig, TrainBenchConfig
from fastloop.bench.decode import run as decode
from fastloop.bench.findings import ArmFindings, measure_work, metrics
from fastloop.bench.forecast import run as forecast
from fastloop.bench.forecast.config import ForecastBenchConfig
from fastloop.bench.page import render_bench
from fastloop.bench.parity import measure_parity
from fastloop.bench.plans import run as plans
from fastloop.bench.plans.config import PlansBenchConfig
from fastloop.bench.report import print_tables
from fastloop.bench.server import run as server
from fastloop.bench.server.config import ServerBenchConfig
from fastloop.bench.shape import run as shape
from fastloop.bench.shape.config import ShapeBenchConfig
from fastloop.bench.stages import measure_stages
from fastloop.bench.success import Success, compare_success, run_config
from fastloop.bench.vehicle import run as vehicle
from fastloop.bench.vehicle.config import VehicleBenchConfig
from fastloop.bench.window import run as window
from fastloop.bench.window.config import WindowBenchConfig
from fastloop.config.ranges import at_least
from fastloop.policies.rng import Rng
from fastloop.progress import bar
from fastloop.run_folder import config_yaml, make_run_dir, provenance, write_result
from fastloop.setup import Setup, set_up
from fastloop.sims.stats import check_margin, ratio_of_medians

__all__ = ["run"]

HELD_OUT = 800_000  # first seed of episodes that no plan is decided on and no success test runs
WATCHED_PLANS = 5


OTHERS: Mapping[type, Callable[[Any], int]] = {
    DecodeBenchConfig: decode.run,
    ForecastBenchConfig: forecast.run,
    PlansBenchConfig: plans.run,
    ServerBenchConfig: server.run,
    ShapeBenchConfig: shape.run,
    TrainBenchConfig: training.run,
    VehicleBenchConfig: vehicle.run,
    WindowBenchConfig: window.run,
}


def run(config: Any) -> int:
    """Measure, write the run folder and print the tables.

    Args:
        config: a `BenchConfig`, or one of `OTHERS`.

    Returns:
        0, or 1 when a gate is red or episodes are missing, or 130 after Ctrl-C.
    """
    if not isinstance(config, BenchConfig):
        return OTHERS[type(config)](config)
    _check(config)
    console = Console()
    setup = set_up(config.policy, config.sim)
    folder = make_run_dir("bench", config.run_dir)
    arms = _make_arms(config, setup, folder, console)
    found = _gate(arms, setup, config, console)
    green = [arm for arm in arms if not found[arm.name].refused]
    _time(green, found, setup, config, console)
    tested = [arm for arm in green if arm is arms[0] or arm.name in config.success_arms]
    success: Success | None = None
    if config.episodes and len(tested) > 1:
        loop_threads(config, setup.policy, folder)
        success = compare_success(config, setup, tested, folder, console)
        for name, comparison in success.comparisons.items():
            found[name] = dataclasses.replace(found[name], comparison=comparison)
    setup.sim.close()
    return _report(list(found.values()), success, setup, config, folder, console)


def _check(config: BenchConfig) -> None:
    """Refuse what would only come out minutes later."""
    run_config(config)
    at_least(config, 1, "batch", "repeats", "observations", "calibration_observations")
    if config.episodes < 0:
        raise ValueError(f"episodes must be 0 (test no success) or more, got {config.episodes}")
    check_margin(config.margin)
    if not config.arms:
        raise ValueError("no arms to compare; add one with '+arms={bac: {accel: {kind: bac}}}'")
    for name in config.arms:
        if name in (PUBLISHED, "dense") or not name.isidentifier():
            raise ValueError(
                f"an arm cannot be called {name!r}: its name is part of file and metric names, "
                f"and {PUBLISHED} and dense are taken"
            )
    if unknown := sorted(set(config.success_arms) - set(config.arms)):
        raise ValueError(f"success_arms names {unknown}; have: {', '.join(config.arms)}")


def _make_arms(config: BenchConfig, setup: Setup, folder: Path, console: Console) -> list[BenchArm]:
    arms, names = [published_arm(setup)], arm_names(config, setup.denoiser)
    with bar("making arms", len(names), console) as advance:
        for done, name in enumerate(names):
            advance(done, name)

            def told(note: str, done: int = done, name: str = name) -> None:
                advance(done, f"{name}, {note}")

            arms.append(make_arm(name, config, setup, folder, told))
        advance(len(names), "")
    return arms


def _gate(
    arms: Sequence[BenchArm], setup: Setup, config: BenchConfig, console: Console
) -> dict[str, ArmFindings]:
    """Parity, action error and work of every arm."""
    published, *others = arms
    one = Chunks.draw(setup, 1, HELD_OUT, config.seed)
    held_out = Chunks.draw(setup, config.observations, HELD_OUT, config.seed)
    found = {published.name: ArmFindings(published.name, True, measure_work(published, one))}
    with bar("parity and action error", len(others), console) as advance:
        expected = decide(published.policy, held_out)
        for done, arm in enumerate(others):
            advance(done, arm.name)
            found[arm.name] = ArmFindings(
                arm.name,
                arm.exact,
                measure_work(arm, one),
                parity=measure_parity(arm, one),
                error=decide(arm.policy, held_out).error_from(expected),
            )
        advance(len(others), "")
    return found


def _time(
    arms: Sequence[BenchArm],
    found: dict[str, ArmFindings],
    setup: Setup,
    config: BenchConfig,
    console: Console,
) -> None:
    """Whole plans in turns, and then where their time goes."""
    history = setup.observations(config.batch, HELD_OUT)
    policies = {arm.name: setup.driving(arm.policy) for arm in arms}
    with console.status("timing plans in turns"):
        timed = {name: ms[1:] for name, ms in time_plans(policies, history, config.repeats).items()}
    published = timed[arms[0].name]
    with bar("where the time goes", len(arms), console) as advance:
        for done, arm in enumerate(arms):
            advance(done, arm.name)
            graph = arm.cached and arm.cached.graph
            rng = Rng.for_envs(0, range(config.batch), history.ticks.tolist())
            report = policies[arm.name].plan(history, rng=rng).report
            found[arm.name] = dataclasses.replace(
                found[arm.name],
                latencies_ms=timed[arm.name],
                replayed=bool(report.replayed) if graph else None,
                not_replayed="; ".join(report.not_replayed),
                speedup=ratio_of_medians(published, timed[arm.name], paired=True),
                stages_ms=measure_stages(arm.policy, history, WATCHED_PLANS),
            )
        advance(len(arms), "")


def _report(
    arms: Sequence[ArmFindings],
    success: Success | None,
    setup: Setup,
    config: BenchConfig,
    folder: Path,
    console: Console,
) -> int:
    policy = setup.denoiser
    unit = policy.spec.action.unit
    device = next(policy.model.parameters()).device
    facts = {
        "checkpoint": config.policy.checkpoint,
        "checkpoint_digest": policy.digest,
        "device": str(device),
        "threads": setup.preparation.threads,
        "refused": {arm.name: arm.refused for arm in arms if arm.refused},
    }
    coverage = dataclasses.asdict(success.coverage) if success else {}
    complete = success is None or success.coverage.complete
    coverage |= {"value": success.coverage.value if success else 1.0, "complete": complete}
    write_result(folder, "bench", config, metrics(arms, unit), coverage, **facts)
    about = f"{config.policy.checkpoint} on {device}, {config.batch} environment(s) a plan"
    page = folder / "bench.html"
    text = render_bench(arms, unit, about, provenance(**facts), config_yaml(config))
    page.write_text(text, encoding="utf-8")
    print_tables(arms, unit, console)
    if success and not complete:
        console.print(success.coverage.sentence(), style="bold red", markup=False)
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    if success and success.interrupted:
        told = f"interrupted; the same command with run_dir={folder} goes on from here"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130
    refused = any(arm.refused for arm in arms)
    return int(refused or not (complete or config.allow_partial))
