"""`fastloop eval`: one policy, plain and accelerated, over the same episodes, with a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from time import perf_counter

import torch
from rich.console import Console

from fastloop.accel.apply import AcceleratedLoop, accelerate
from fastloop.config import ClockConfig, EvalConfig
from fastloop.policies.chunks import Chunking, RecedingHorizon, TemporalEnsemble
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.progress import bar
from fastloop.run_folder import config_digest, config_yaml, make_run_dir, provenance
from fastloop.setup import calibration_data, set_up
from fastloop.sims.clock import Clock, Frozen, Replay, Wall
from fastloop.sims.findings import analyze
from fastloop.sims.report import write_report
from fastloop.sims.run_result import RunResult
from fastloop.sims.runner import Progress, RunConfig
from fastloop.sims.runner import run as run_closed_loop
from fastloop.sims.summary import Arm, PlanMask, RunSummary, Video
from fastloop.sims.video import Filming
from fastloop.sims.worklist import WorkItem

__all__ = ["run"]

# Fields that change speed, place or pictures, and no episode.
NEUTRAL = (
    "run_dir", "num_envs", "margin", "timed_plans", "video", "video_count",
    "retries", "step_timeout_s", "allow_partial",
)  # fmt: skip


def run(config: EvalConfig) -> int:
    """Evaluate, write the run folder and print the report.

    Returns:
        0, or 1 when episodes are missing, or 130 after Ctrl-C.
    """
    console = Console()
    folder = make_run_dir("eval", config.run_dir)
    setup = set_up(config.policy, config.sim)
    policies = _arms(config, setup)
    timed = time_plans(policies, setup.observations(1, config.first_seed), config.timed_plans)
    items = [
        WorkItem(setup.sim.env_spec.name, seed)
        for seed in range(config.first_seed, config.first_seed + config.episodes)
    ]
    setup.sim.close()
    results: dict[str, RunResult] = {}
    for name, policy in policies.items():
        digest = config_digest(config, without=NEUTRAL) + "/" + name
        with bar(name, len(items), console) as advance:

            def show(progress: Progress, advance=advance) -> None:
                rate = progress.successes / max(progress.done, 1)
                advance(progress.done, f"success {rate:.0%}")

            results[name] = run_closed_loop(
                policy,
                {items[0].task: setup.sim_config},
                items,
                run_dir=folder / name,
                digest=f"{digest}/{policy.digest[:16]}",
                config=RunConfig(
                    num_envs=config.num_envs,
                    plan_batch=config.plan_batch,
                    seed=config.seed,
                    retries=config.retries,
                    step_timeout_s=config.step_timeout_s,
                    filming=Filming(config.video, config.video_count),
                ),
                clock=_clock(config.clock),
                chunking=_chunking(config.chunking, policy),
                arm=name,
                progress=show,
            )
        if results[name].interrupted:
            break
    summary = RunSummary(
        verb="eval",
        arms=[_arm(name, results[name], policies[name], timed[name]) for name in results],
        planned=[item.key for item in items],
        margin=config.margin,
        interleaved_ms={name: timed[name][1:] for name in results},
        videos=[
            Video(str(path.relative_to(folder)), name, *key)
            for name, result in results.items()
            for key, path in result.videos.items()
        ],
        provenance=provenance(
            checkpoint=config.policy.checkpoint,
            checkpoint_digest=setup.policy.digest,
            threads=setup.preparation.threads,
            plan_ms_by_threads={k: round(v, 2) for k, v in setup.preparation.plan_ms.items()},
            success_criterion=setup.sim.env_spec.success,
            **{f"runner_overhead/{n}": f"{r.times.overhead:.2%}" for n, r in results.items()},
        ),
        config=config_yaml(config),
    )
    page = write_report(summary, folder, console)
    console.print(f"report: {page}\nrun folder: {folder}", markup=False, highlight=False)
    if any(result.interrupted for result in results.values()):
        console.print(f"interrupted; add run_dir={folder} to go on from here", markup=False)
        return 130
    return 0 if analyze(summary).coverage.complete or config.allow_partial else 1


def time_plans(
    policies: dict[str, DiffusionPolicy], history: History, repeats: int
) -> dict[str, list[float]]:
    """Wall time of whole plan() calls for one environment, the arms taking turns.

    Returns:
        arm to `repeats` + 1 milliseconds, the first one cold.
    """
    timed: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(repeats + 1):
        rng = Rng.for_envs(0, [turn], history.ticks.tolist())
        for name, policy in policies.items():
            started = perf_counter()
            policy.plan(history, rng=rng)
            timed[name].append(1e3 * (perf_counter() - started))
    return timed


def _arms(config: EvalConfig, setup) -> dict[str, DiffusionPolicy]:
    """The policy as published and, when one is configured, accelerated."""
    policies = {"plain": setup.policy}
    if config.accel.kind != "none":
        data: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.accel.plan is None:
            # Other episodes than the evaluated ones.
            first = config.first_seed + config.episodes + 1_000
            data = calibration_data(setup, config.calibration_observations, first, config.seed)
        fast = accelerate(setup.policy, config.accel, observations=data)
        if isinstance(fast.loop, AcceleratedLoop):  # FASTLOOP_ACCEL=off leaves it plain
            policies[config.accel.kind] = fast
    return policies


def _arm(name: str, result: RunResult, policy: DiffusionPolicy, timed: Sequence[float]) -> Arm:
    mask = None
    if isinstance(policy.loop, AcceleratedLoop):
        plan = policy.loop.fast.plan
        mask = PlanMask([branch.name for branch in plan.branches], plan.mask().tolist())
    # Latency is that of one robot; the runner's own calls serve several environments at once.
    cold = [True] + [False] * (len(timed) - 1)
    return dataclasses.replace(result.arm(name, mask), latencies_ms=timed, cold=cold)


def _clock(config: ClockConfig) -> Clock:
    if config.kind == "frozen":
        return Frozen()
    if config.kind == "wall":
        return Wall()
    if config.kind != "replay":
        raise ValueError(f"unknown clock {config.kind!r}; have: frozen, replay, wall")
    return Replay([1e-3 * value for value in config.latency_ms])


def _chunking(name: str, policy: DiffusionPolicy) -> Chunking:
    if name == "receding":
        return RecedingHorizon(policy.spec.n_action_steps)
    if name != "ensemble":
        raise ValueError(f"unknown chunking {name!r}; have: receding, ensemble")
    return TemporalEnsemble()
