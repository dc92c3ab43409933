"""What an evaluation compares: a policy as published, and accelerated, ready to run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate, remove
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.graph import recording
from fastloop.bench.config import BenchConfig
from fastloop.config import EvalConfig, PolicyConfig, SamplerOverrides
from fastloop.policies.base import Policy
from fastloop.policies.driving.whole_plans import planner_of
from fastloop.policies.history import History, Underway
from fastloop.policies.prepare import arriving, prepare
from fastloop.policies.rng import Rng
from fastloop.policies.spec import check_specs
from fastloop.policies.vla.decoding import FASTEST, plain_decoding
from fastloop.policies.vla.policy import VisionLanguagePlanner
from fastloop.run_folder import write_whole
from fastloop.setup import Setup, calibration_data, load
from fastloop.sims.summary import PlanMask

__all__ = [
    "arm_digest",
    "loop_threads",
    "make_arms",
    "plan_mask",
    "policy_digest",
    "time_arms",
    "time_plans",
]


def make_arms(config: EvalConfig, setup: Setup, folder: Path) -> dict[str, Policy]:
    """The policy as published and, where `accel` is not none, accelerated, by name: ``plain`` and
    the accelerator's, or a policy's own where it has nothing to accelerate; then the baselines.

    A vision-language model is accelerated by the way it writes: ``plain`` is token by token, and
    with several answers it also runs with one.

    A cache plan that is made here is kept in `folder`, so that a run which is continued uses the
    same one.

    Raises:
        ValueError: an accelerator for a policy that has nothing to accelerate; baselines of equal
            names.
        CheckpointError, SpecMismatchError: a baseline cannot be read, or does not fit.
    """
    arms = _own_arms(config, setup, folder)
    for checkpoint in config.baselines:
        name = Path(checkpoint).stem
        if name in arms:
            raise ValueError(f"baselines: there is an arm {name!r} already, of {list(arms)}")
        other = PolicyConfig(checkpoint=checkpoint, device=config.policy.device)
        arms[name] = load(other, setup.sim.env_spec, SamplerOverrides())
        check_specs(arms[name].spec, setup.sim.env_spec, policy_name=checkpoint)
    return arms


def _own_arms(config: EvalConfig, setup: Setup, folder: Path) -> dict[str, Policy]:
    accel = config.accel
    if accel.kind == "none" and not setup.denoises:
        return {Path(config.policy.checkpoint).stem: setup.policy}
    if isinstance(planner := planner_of(setup.policy), VisionLanguagePlanner):
        return _ways_to_write(setup, planner)
    arms = {"plain": setup.driving(remove(setup.denoiser))}
    if accel.kind == "none":
        return arms
    kept = folder / "plan.json"
    data: tuple[torch.Tensor, torch.Tensor] | None = None
    if accel.plan is None and kept.exists():
        accel = dataclasses.replace(accel, plan=str(kept))
    elif accel.plan is None:
        first = config.first_seed + config.episodes + 1_000  # none that is evaluated
        data = calibration_data(setup, config.calibration_observations, first, config.seed)
    fast = accelerate(setup.denoiser, accel, observations=data)
    if isinstance(fast.loop, AcceleratedLoop):  # FASTLOOP_ACCEL=off leaves it plain
        # Known before an episode is run: a plan that saves nothing cannot engage.
        fast.loop.fast.report().check_engaged()
        plan = fast.loop.fast.plan
        plan.save(kept)
        arms[accel.kind] = setup.driving(fast)
    return arms


def _ways_to_write(setup: Setup, planner: VisionLanguagePlanner) -> dict[str, Policy]:
    """Token by token, as configured with one answer, and with as many as are configured."""
    config, regime = planner.decoding, planner.model.spec.regime
    ways = {"plain": plain_decoding(regime)}
    own = config.driver or FASTEST.get(regime, "denoise")
    if config.rollouts > 1:
        ways[own] = dataclasses.replace(config, rollouts=1, temperature=0.0)
        ways[f"{config.rollouts}_rollouts"] = config
    else:
        ways[own] = config
    return {name: setup.driving(planner.with_decoding(way)) for name, way in ways.items()}


def policy_digest(policy: Policy) -> str:
    """What identifies the weights, or the rule of a policy without any."""
    planner = planner_of(policy)
    return str(getattr(planner, "digest", type(planner).__name__))


def arm_digest(policy: Policy) -> str:
    """A digest of the weights and of what the cache plan does, wherever the plan lies."""
    plan, planner = _cache_plan(policy), planner_of(policy)
    text = policy_digest(policy) + repr(plan and (plan.branches, plan.updates, plan.predictor))
    if isinstance(planner, VisionLanguagePlanner):
        text += repr(planner.decoding)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_mask(policy: Policy) -> PlanMask | None:
    """What a block cache computes, for the report; None for a policy that has none."""
    plan = _cache_plan(policy)
    if plan is None:
        return None
    return PlanMask([branch.name for branch in plan.branches], plan.mask().tolist())


def _cache_plan(policy: Policy) -> CachePlan | None:
    loop = getattr(planner_of(policy), "loop", None)
    return loop.fast.plan if isinstance(loop, AcceleratedLoop) else None


def time_plans(
    arms: Mapping[str, Policy],
    history: History,
    repeats: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Wall time of whole plan() calls on the environments of `history`, the arms taking turns.

    Returns:
        arm to `repeats` + 1 milliseconds, the first one cold.
    """
    timed: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        rng = Rng.for_envs(0, [turn] * len(history), history.ticks.tolist())
        for name, policy in arms.items():
            seen = arriving(history, policy.spec)
            started = perf_counter()
            with nullcontext() if turn else recording():
                policy.plan(seen, rng=rng)
            timed[name].append(1e3 * (perf_counter() - started))
        if progress is not None:
            progress(turn)
    return timed


def time_arms(
    config: EvalConfig, setup: Setup, arms: Mapping[str, Policy], folder: Path
) -> dict[str, list[float]]:
    """`time_plans` of one robot; where the clock replays it, what is kept in `folder` of it, so
    that a run which is continued goes on in the same world.

    Raises:
        ValueError: what is kept is damaged, or of other arms.
    """
    kept, replayed = folder / "latencies.json", config.clock.kind == "measured"
    if replayed and kept.exists():
        return _kept_latencies(kept, arms)
    history = setup.observations(1, config.first_seed)
    if config.chunking == "real_time":
        history = _under_way(history, setup.policy)
    timed = time_plans(arms, history, config.timed_plans)
    if replayed:
        write_whole(kept, json.dumps(timed))
    return timed


def _under_way(history: History, policy: Policy) -> History:
    """`history` with a plan in execution: going on from it may take longer than beginning."""
    rng = Rng.for_envs(0, [0] * len(history), history.ticks.tolist())
    plans = policy.plan(history, rng=rng).actions
    begun = [int(tick) - policy.spec.n_action_steps for tick in history.ticks]
    rows = zip(begun, plans, strict=True)
    return dataclasses.replace(history, underway=tuple(Underway(*row) for row in rows))


def _kept_latencies(path: Path, arms: Mapping[str, Policy]) -> dict[str, list[float]]:
    try:
        timed = {name: [float(ms) for ms in json.loads(path.read_text())[name]] for name in arms}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the latencies of {' and '.join(arms)} ({error!r}); choose "
            "another run_dir"
        ) from error
    return timed


def loop_threads(config: BenchConfig | EvalConfig, policy: Policy, folder: Path) -> int:
    """Set torch's threads for the closed loop, whose calls serve `plan_batch` environments.

    Another thread count can change last digits, and with them episodes: a run that is continued
    keeps the first one's, in `folder`.
    """
    kept = folder / "threads.json"
    if kept.exists():
        threads = int(json.loads(kept.read_text())["closed_loop"])
        torch.set_num_threads(threads)
        return threads
    found = prepare(policy, threads=config.policy.threads, batch=max(config.plan_batch, 1))
    write_whole(kept, json.dumps({"closed_loop": found.threads}))
    return found.threads
