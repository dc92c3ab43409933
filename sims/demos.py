"""Demonstrations by scripted experts: parallel, resumable, the same for any number of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration
from fastloop.policies.load import load_policy
from fastloop.policies.session import Session
from fastloop.policies.spec import EnvSpec, check_specs
from fastloop.sims.base import Sim
from fastloop.sims.config import SimConfig
from fastloop.sims.experts.base import Expert
from fastloop.sims.interrupts import catch_interrupts
from fastloop.sims.targets import build

__all__ = ["Recipe", "demonstrate", "read_part", "record"]

BURST_TICKS = (3, 11)
SHORTEST = 4  # ticks; shorter segments are dropped
BROKEN = 5  # attempts that raised and none that did not, after which it is no accident
HOPELESS = 50  # attempts without a success after which there is no point in going on


@dataclass(frozen=True)
class Recipe:
    """How an episode is demonstrated.

    Attributes:
        sim: the simulator.
        expert: ``_target_`` and arguments of the expert.
        disturb: probability that an episode is disturbed by bursts of random actions. These are
            not recorded: the demonstration is split there, so that recovery is learned.
        noise: in disturbed episodes the executed action differs from the recorded one by normal
            noise of up to this deviation, a fraction of each action's range (Laskey et al. 2017).
        bursts: disturbances in one episode, at most.
        burst_every: ticks between disturbances, on average.
        student: a policy, by name or path, which drives instead, while the expert says what it
            would do there (DAgger, Ross et al. 2011); such an episode is kept however it ends.
        n_action_steps: ticks until the student plans again; None as it says itself.

    Raises:
        ValueError: for noise and a student.
    """

    sim: SimConfig
    expert: Mapping[str, Any]
    disturb: float = 0.0
    noise: float = 0.0
    bursts: int = 3
    burst_every: int = 25
    student: str = ""
    n_action_steps: int | None = None

    def __post_init__(self) -> None:
        if self.student and self.noise:
            raise ValueError(
                f"noise={self.noise:g} is added to what an expert does, and {self.student} drives "
                "instead: say noise=0"
            )


def demonstrate(
    sim: Sim, expert: Expert, seed: int, recipe: Recipe, student: Session | None = None
) -> list[Demonstration]:
    """One episode by the expert, split at its disturbances; empty when the expert failed. Or one by
    `student`, with what the expert would have done.

    Where an action is a whole plan and its age, only the moments are kept at which one was made.

    Raises:
        ValueError: for noise on plans, whose numbers have no range.
    """
    rng = np.random.default_rng(seed)
    disturbed = rng.uniform() < recipe.disturb
    whole_plans = sim.env_spec.action.kind == "plan"
    if whole_plans and recipe.noise:
        raise ValueError("noise is a fraction of an action's range, which plans lack: say noise=0")
    span = np.subtract(sim.env_spec.action.high, sim.env_spec.action.low)
    deviation = rng.uniform(0, recipe.noise) * span if disturbed and recipe.noise else 0.0
    observation, _ = sim.reset(seed=seed)
    expert.reset(sim)
    if student:
        student.begin(0, seed)
    segments: list[Demonstration] = []
    seen: list[dict[str, NDArray[Any]]] = []
    done: list[NDArray[Any]] = []
    rewards: list[float] = []
    success = ended = False

    def close() -> None:
        if len(done) >= SHORTEST:
            frames = {key: np.stack([frame[key] for frame in seen]) for key in seen[0]}
            segments.append(
                Demonstration(
                    observations=frames,
                    actions=np.stack(done).astype(np.float32),
                    rewards=np.array(rewards, dtype=np.float32),
                    seed=seed,
                    success=success,
                )
            )
        for recorded in (seen, done, rewards):
            recorded.clear()

    bursts = 0
    while not ended:
        if disturbed and bursts < recipe.bursts and rng.uniform() < 1 / recipe.burst_every:
            bursts += 1
            close()
            for _ in range(rng.integers(*BURST_TICKS)):
                observation, _, terminated, truncated, info = sim.step(expert.nudge(sim, rng))
                ended = terminated or truncated
                if ended:  # by accident: what came before still ends in a success, or in none
                    return segments if info["is_success"] or student else []
            expert.reset(sim)
        action = expert.act(sim)
        kept = not whole_plans or action[0] == 0
        if kept:
            seen.append(observation)
            done.append(action)
        executed: NDArray[Any] = action + rng.normal(size=len(span)) * deviation
        if student:
            executed = _act(student, observation)
        observation, reward, terminated, truncated, info = sim.step(executed)
        if kept:
            rewards.append(reward)
        success, ended = bool(info["is_success"]), terminated or truncated
    close()
    return segments if success or student else []


def _act(student: Session, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    batch = {
        key: torch.from_numpy(np.asarray(observation[key]))[None]
        for key in student.policy.spec.inputs
    }
    action: NDArray[np.float64] = student.select_action(batch)[0].double().numpy()
    return action


def record(
    recipe: Recipe,
    parts: Path,
    *,
    episodes: int,
    first_seed: int,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Path]:
    """Record the first `episodes` successful seeds, counting up from `first_seed`.

    Every attempt leaves a file of its own in `parts`, put in place whole, so a killed recording
    goes on with the next seed, and a full disk loses nothing that was finished. A seed on which the
    simulator or the expert raises is a failed attempt. The first SIGINT or SIGTERM lets the
    attempts in hand finish.

    Args:
        parts: folder of one recording; belongs to one recipe.
        num_workers: processes; the outcome does not depend on it.
        progress: called with (successes, attempts) after each attempt.

    Yields:
        the files of the successful attempts, in the order of their seeds.

    Raises:
        KeyboardInterrupt: after a signal; the same call later goes on.
        ValueError: when nothing succeeds, or nothing runs.
        OSError: when the disk is full or a process dies; what was finished is safe.
    """
    parts.mkdir(parents=True, exist_ok=True)
    successes = attempts = raised = 0
    hopeless = ""
    seeds = count(first_seed)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_die_with_parent
    )
    pending: deque[Future[_Attempt]] = deque()
    with catch_interrupts() as interrupts:
        try:
            while successes < episodes:
                if interrupts.requested:
                    raise KeyboardInterrupt
                with _interrupts_held():
                    while len(pending) < 2 * num_workers:
                        pending.append(pool.submit(_attempt, recipe, parts, next(seeds)))
                attempt = pending.popleft().result()
                attempts, successes = attempts + 1, successes + attempt.success
                raised += bool(attempt.error)
                if progress:
                    progress(successes, attempts)
                if attempt.success:
                    yield attempt.path
                if attempts == raised == BROKEN:
                    hopeless = (
                        f"each of the first {attempts} seeds raised, lastly {attempt.error}: does "
                        "this expert know this simulator?"
                    )
                    break
                if attempts == HOPELESS and not successes:
                    hopeless = f"the expert failed on all of the first {attempts} seeds" + (
                        f", lastly with {attempt.error}" if attempt.error else ""
                    )
                    break
        except BrokenProcessPool as error:
            if interrupts.requested:
                raise KeyboardInterrupt from error
            raise ChildProcessError(
                "a recording process died: out of memory, or its simulator crashed; the finished "
                f"episodes are safe in {parts}: run the same command again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if hopeless:
        for path in parts.glob("*.npz"):  # nothing to go on from, whatever is tried next
            path.unlink()
        raise ValueError(hopeless)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits; processes that are started meanwhile never see it: it is the parent's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    """A killed recorder leaves no process behind."""

    def wait() -> None:
        parent = parent_process()
        assert parent
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_part(path: Path) -> list[Demonstration]:
    """The demonstrations of one attempt, empty when it failed."""
    with np.load(path, allow_pickle=False) as arrays:
        return [
            Demonstration(
                observations={
                    key.removeprefix(f"{i}/obs/"): arrays[key]
                    for key in arrays.files
                    if key.startswith(f"{i}/obs/")
                },
                actions=arrays[f"{i}/actions"],
                rewards=arrays[f"{i}/rewards"],
                seed=int(arrays["seed"]),
                success=bool(arrays[f"{i}/success"]),
            )
            for i in range(int(arrays["segments"]))
        ]


class _Attempt(NamedTuple):
    path: Path
    success: bool
    error: str


# One simulator a process, whatever the number of seeds.
_built: dict[str, tuple[Sim, Expert, Session | None]] = {}


def _attempt(recipe: Recipe, parts: Path, seed: int) -> _Attempt:
    path = parts / f"{seed}.npz"
    if not path.exists():
        key = repr(recipe)
        if key not in _built:
            sim = recipe.sim.build()
            _built[key] = sim, build(recipe.expert, "expert"), _student(recipe, sim.env_spec)
        segments: list[Demonstration] = []
        error = ""
        try:
            sim, expert, student = _built[key]
            segments = demonstrate(sim, expert, seed, recipe, student)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            del _built[key]  # it may have been left in any state
        _write_part(path, seed, segments, error)
    with np.load(path, allow_pickle=False) as arrays:
        return _Attempt(path, int(arrays["segments"]) > 0, str(arrays["error"]))


def _student(recipe: Recipe, env: EnvSpec) -> Session | None:
    if not recipe.student:
        return None
    torch.set_num_threads(1)  # there are as many processes as is useful
    policy = load_policy(recipe.student, env=env, n_action_steps=recipe.n_action_steps)
    check_specs(policy.spec, env, policy_name=recipe.student)
    return Session(policy)


def _write_part(path: Path, seed: int, segments: list[Demonstration], error: str) -> None:
    arrays: dict[str, Any] = {"seed": seed, "segments": len(segments), "error": error}
    for i, segment in enumerate(segments):
        arrays |= {f"{i}/obs/{key}": value for key, value in segment.observations.items()}
        arrays |= {
            f"{i}/actions": segment.actions,
            f"{i}/rewards": segment.rewards,
            f"{i}/success": segment.success,
        }
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial, path)
    except OSError as raised:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(
            raised.errno,
            f"cannot write {path} ({raised.strerror}); the finished episodes are safe in "
            f"{path.parent}: make room and run the same command again",
        ) from raised
