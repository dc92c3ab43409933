"""What is done once before the first timed plan: warm up, and find the fastest thread count."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from fastloop.accel.graph import recording
from fastloop.policies.base import Policy
from fastloop.policies.history import EpisodeHistory, Frame, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec, TensorSpec

__all__ = ["Preparation", "arriving", "example_history", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """What `prepare` chose.

    Attributes:
        threads: torch's intra-op threads from now on.
        plan_ms: median wall time of a plan for each thread count that was tried.
    """

    threads: int
    plan_ms: Mapping[int, float]


def example_history(spec: PolicySpec, batch: int = 1) -> History:
    """A valid history of `batch` environments whose observations are all in range."""
    episodes = []
    for _ in range(batch):
        episode = EpisodeHistory(1 + spec.lags[0])
        episode.observe({key: _example(value) for key, value in spec.inputs.items()})
        episodes.append(episode)
    return History.stack(episodes, spec.lags)


def arriving(history: History, spec: PolicySpec) -> History:
    """`history` as it comes to a plan in the middle of an episode: frames that no earlier plan has
    read remember nothing, so that timing a plan times what is done for them."""
    every = spec.n_action_steps
    is_new = [
        all(lag - back not in spec.lags for back in range(every, lag + 1, every))
        for lag in spec.lags
    ]
    frames = tuple(
        tuple(Frame(frame.values) if new else frame for frame, new in zip(row, is_new, strict=True))
        for row in history.frames
    )
    return replace(history, frames=frames)


def _example(spec: TensorSpec) -> torch.Tensor:
    value = min(max(0.0, spec.low), spec.high)
    return torch.full(spec.shape, value).to(getattr(torch, spec.dtype))


def prepare(policy: Policy, *, threads: int = 0, batch: int = 1, repeats: int = 3) -> Preparation:
    """Warm `policy` up and set torch's thread count for it; on a GPU, record what it does for
    `batch` environments.

    Small policies lose badly on several threads, large ones gain; so it is measured, each count
    warm, in turns. On a busy machine several threads may wait for each other for seconds: a count
    that was twice as slow as the best one is not tried again.

    The thread count is torch's, for the whole process; nothing else is changed.

    Args:
        threads: use this many; 0 tries powers of two up to the machine's cores.
        batch: environments a plan.
        repeats: plans timed for each count.

    Raises:
        ValueError: for a negative number of threads.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 (measure) or more, got {threads}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tried = [threads] if threads else [n for n in (1, 2, 4, 8, 16, 32) if n <= (cores or 1)]
    history = example_history(policy.spec, batch)
    rng = Rng.for_envs(0, range(batch), [0] * batch)
    samples: dict[int, list[float]] = {count: [] for count in tried}
    for turn in range(repeats + 1):
        for count in tried:
            torch.set_num_threads(count)
            seen = arriving(history, policy.spec)
            started = perf_counter()
            with recording():
                policy.plan(seen, rng=rng)
            if turn:  # the first one of each count is cold
                samples[count].append(1e3 * (perf_counter() - started))
        if turn:
            fastest = min(min(times) for times in samples.values())
            tried = [count for count in tried if min(samples[count]) < 2 * fastest]
    medians = {count: statistics.median(times) for count, times in samples.items()}
    best = min(medians, key=lambda count: medians[count])
    torch.set_num_threads(best)
    return Preparation(best, medians)
