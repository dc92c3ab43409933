"""`fastloop eval`: one policy, plain and accelerated, over the same episodes, with a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from fastloop.arms import (
    arm_digest,
    loop_threads,
    make_arms,
    plan_mask,
    policy_digest,
    time_arms,
)  # fmt: skip
from fastloop.clocks import check_clock, describe_clock, make_clock, replayed_ms
from fastloop.config import EvalConfig
from fastloop.config.ranges import at_least
from fastloop.datasets import robomimic
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf
from fastloop.policies.chunks import Chunking, RecedingHorizon, TemporalEnsemble
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.real_time import real_time
from fastloop.policies.spec import EnvSpec
from fastloop.progress import bar
from fastloop.run_folder import config_digest, config_yaml, make_run_dir, provenance
from fastloop.setup import set_up
from fastloop.sims.base import Sim
from fastloop.sims.clock import Clock
from fastloop.sims.config import SimConfig
from fastloop.sims.findings import analyze
from fastloop.sims.predictability import moments_of
from fastloop.sims.report import write_report
from fastloop.sims.run_result import Progress, RunResult
from fastloop.sims.runner import RunConfig
from fastloop.sims.runner import run as run_closed_loop
from fastloop.sims.stats import check_margin
from fastloop.sims.summary import Arm, RunSummary, Video
from fastloop.sims.video import Filming
from fastloop.sims.worklist import WorkItem

__all__ = ["run"]

# Fields that change speed, place or pictures, and no episode.
NEUTRAL = (
    "run_dir", "num_envs", "margin", "timed_plans", "video", "video_count",
    "retries", "step_timeout_s", "allow_partial", "baselines",
    "demonstrations",
)  # fmt: skip


def run(config: EvalConfig) -> int:
    """Evaluate, write the run folder and print the report.

    Returns:
        0, or 1 when episodes are missing, or 130 after Ctrl-C.
    """
    console = Console()
    at_least(config, 1, "episodes", "calibration_observations")
    at_least(config, 0, "first_seed", "seed", "timed_plans", "video_count")
    check_margin(config.margin)
    _check_clock(config)
    running = _run_config(config)
    setup = set_up(config.policy, config.sim)
    _check_seeds(config, setup.sim)
    _chunking(config.chunking, setup.policy)  # refused before anything runs
    if config.chunking == "real_time":
        real_time(setup.policy, config.real_time)
    expert = _expert(config, setup.sim.env_spec)
    folder = make_run_dir("eval", config.run_dir)
    decided = folder / "decided" / config_digest(config, without=NEUTRAL)
    decided.mkdir(parents=True, exist_ok=True)  # what a run that is continued does not ask again
    told = f"calibrating and timing; the same command with run_dir={folder} goes on from here"
    with console.status(told):
        arms = _going_on(config, make_arms(config, setup, decided))
        timed = time_arms(config, setup, arms, decided)
        threads = loop_threads(config, setup.policy, decided)
    env, left_out, notes = setup.sim.env_spec, list(setup.sim.left_out), list(setup.sim.notes)
    setup.sim.close()
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    items = [WorkItem(env.name, seed) for seed in seeds]
    results: dict[str, RunResult] = {}
    for name, policy in arms.items():
        clock = make_clock(config.clock, timed[name])
        chunking = _chunking(config.chunking, policy)
        results[name] = _run_arm(
            name, policy, setup.sim_config, items, config, running, folder, clock, chunking, console
        )
        if results[name].interrupted:
            break
    facts = {
        "checkpoint": config.policy.checkpoint,
        "checkpoint_digest": policy_digest(setup.policy),
        "success": env.success,
        "clock": describe_clock(config.clock, timed, env.control_hz),
        **_late(config, timed),
        "left_out": left_out,
        "notes": notes,
        "threads_for_one_robot": setup.preparation.threads,
        "plan_ms_by_threads": {k: round(v, 2) for k, v in setup.preparation.plan_ms.items()},
        "threads_in_closed_loop": threads,
        "runner_overhead": {n: f"{result.times.overhead:.1%}" for n, result in results.items()},
    }
    summary = _summary(config, arms, results, timed, items, folder, facts, expert)
    page = write_report(summary, folder, console)
    for told, style in ((notes, ""), (left_out, "bold red")):
        for line in told:
            console.print(f"left out: {line}", style=style, markup=False, soft_wrap=True)
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    if any(result.interrupted for result in results.values()):
        told = f"interrupted; the same command with run_dir={folder} goes on from here"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130
    complete = analyze(summary).coverage.complete and not left_out
    return 0 if complete or config.allow_partial else 1


def _check_seeds(config: EvalConfig, sim: Sim) -> None:
    """Episodes that come twice would make every interval narrower than it is."""
    if sim.distinct_seeds is not None and config.episodes > sim.distinct_seeds:
        raise ValueError(
            f"{sim.env_spec.name} has {sim.distinct_seeds} different episodes, and "
            f"{config.episodes} are asked for: say episodes={sim.distinct_seeds} or fewer"
        )


def _expert(config: EvalConfig, env: EnvSpec) -> list[list[float]]:
    """The moments of the demonstrations' actions.

    Raises:
        DemonstrationError, ValueError: they cannot be read, or are of other actions.
    """
    if config.demonstrations is None:
        return []
    demonstrations = robomimic.read(config.demonstrations, [])
    lengths = {len(demonstration.actions[0]) for demonstration in demonstrations}
    if env.action.kind == "plan" or lengths != {env.action.dim}:
        raise ValueError(
            f"demonstrations={config.demonstrations} holds actions of {sorted(lengths)} elements; "
            f"{env.name} takes {env.action.kind} of {env.action.dim}, so the two cannot be compared"
        )
    return [moments_of(demonstration.actions) for demonstration in demonstrations]


def _check_clock(config: EvalConfig) -> None:
    check_clock(config.clock)
    if config.clock.kind == "measured" and config.timed_plans < 1:
        raise ValueError(
            "clock.kind=measured replays the plans that are timed, and timed_plans is "
            f"{config.timed_plans}; say timed_plans=30"
        )


def _run_config(config: EvalConfig) -> RunConfig:
    return RunConfig(
        num_envs=config.num_envs,
        plan_batch=config.plan_batch,
        seed=config.seed,
        retries=config.retries,
        step_timeout_s=config.step_timeout_s,
        filming=Filming(config.video, config.video_count),
    )


def _run_arm(
    name: str,
    policy: Policy,
    sim: SimConfig,
    items: Sequence[WorkItem],
    config: EvalConfig,
    running: RunConfig,
    folder: Path,
    clock: Clock,
    chunking: Chunking,
    console: Console,
) -> RunResult:
    with bar(name, len(items), console) as advance:

        def show(progress: Progress) -> None:
            rate = progress.successes / max(progress.done, 1)
            advance(progress.done, f"success {rate:.0%}")

        return run_closed_loop(
            policy,
            {items[0].task: sim} if items else {},
            items,
            run_dir=folder / name,
            digest=f"{_world_digest(config, clock)}/{name}/{arm_digest(policy)}",
            config=running,
            clock=clock,
            chunking=chunking,
            arm=name,
            progress=show,
        )


def _late(config: EvalConfig, timed: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How late the plans of each arm come, where that is replayed."""
    late = {name: replayed_ms(config.clock, ms) for name, ms in timed.items()}
    p50 = {name: round(median(trace), 2) for name, trace in late.items() if trace}
    return {"late_ms_p50": p50} if p50 else {}


def _world_digest(config: EvalConfig, clock: Clock) -> str:
    """Of what decides an episode beside the policy."""
    told = config_digest(config, without=NEUTRAL)
    # The configuration does not say what was measured.
    return f"{told}-{config_digest(clock)}" if config.clock.kind == "measured" else told


def _summary(
    config: EvalConfig,
    arms: Mapping[str, Policy],
    results: Mapping[str, RunResult],
    timed: Mapping[str, Sequence[float]],
    items: Sequence[WorkItem],
    folder: Path,
    facts: Mapping[str, Any],
    expert: Sequence[Sequence[float]],
) -> RunSummary:
    def arm(name: str, result: RunResult) -> Arm:
        # Latency is that of one robot; the runner's own calls serve several environments at once.
        return dataclasses.replace(
            result.arm(name, plan_mask(arms[name])),
            latencies_ms=timed[name],
            cold=[True] + [False] * (len(timed[name]) - 1),
        )

    return RunSummary(
        verb="eval",
        arms=[arm(name, result) for name, result in results.items()],
        planned=[item.key for item in items],
        margin=config.margin,
        interleaved_ms={name: timed[name][1:] for name in results},
        demonstrations=expert,
        videos=[
            Video(str(path.relative_to(folder)), name, *key)
            for name, result in results.items()
            for key, path in result.videos.items()
        ],
        provenance=provenance(**facts),
        config=config_yaml(config),
    )


def _going_on(config: EvalConfig, arms: Mapping[str, Policy]) -> dict[str, Policy]:
    """The arms, with plans that go on from the one under way where that is asked for; baselines
    that do not denoise stay as they are."""
    if config.chunking != "real_time":
        return dict(arms)
    return {
        name: real_time(policy, config.real_time) if _denoises(policy) else policy
        for name, policy in arms.items()
    }


def _denoises(policy: Policy) -> bool:
    return isinstance(policy, DiffusionPolicy | BestOf)


def _chunking(name: str, policy: Policy) -> Chunking:
    if name in ("receding", "real_time"):
        return RecedingHorizon(policy.spec.n_action_steps)
    if name != "ensemble":
        raise ValueError(f"unknown chunking {name!r}; have: receding, ensemble, real_time")
    if policy.spec.action.kind == "plan":
        raise ValueError(
            "chunking=ensemble averages actions, and plans of different moments are in different "
            "frames; say chunking=receding"
        )
    return TemporalEnsemble()
