"""The Bubbling Union of Block-wise Adaptive Caching (arXiv 2506.13456).

A feed-forward branch that is refreshed on a stale stream caches a wrong value. So the branches
whose values are most wrong are refreshed whenever a feed-forward branch downstream of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastloop.accel.block_cache.stack import Branch

__all__ = ["bubbling_union", "scheduled_error", "volatility"]


def volatility(l1: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How much each branch's value moves over the chain, whatever its schedule.

    Args:
        l1: (N, K, K) mean absolute differences, from `distances`.

    Returns:
        (N,) the mean over all pairs of different steps; 0 for K = 1.
    """
    steps = l1.shape[-1]
    mean: npt.NDArray[np.float64] = l1.sum(axis=(1, 2)) / max(steps * (steps - 1), 1)
    return mean


def scheduled_error(
    schedules: Sequence[Sequence[int]], branches: Sequence[Branch], l1: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How wrong each branch's cache is when a feed-forward branch downstream is updated.

    Args:
        schedules: one per branch.
        branches: in the order of execution.
        l1: (N, K, K) mean absolute differences, from `distances`.

    Returns:
        (N,) the mean over the update steps of the feed-forward branches downstream; 0 for a
        branch that has none.
    """
    scores = np.zeros(len(branches))
    for u, schedule in enumerate(schedules):
        steps = sorted(set[int]().union(*_downstream(u, schedules, branches)))
        if steps:
            anchors = np.asarray(schedule)[np.searchsorted(schedule, steps, side="right") - 1]
            scores[u] = l1[u, anchors, steps].mean()
    return scores


def bubbling_union(
    schedules: Sequence[Sequence[int]],
    branches: Sequence[Branch],
    scores: npt.NDArray[np.float64],
    top: int,
) -> list[tuple[int, ...]]:
    """Add to the `top` branches of the highest scores the updates of feed-forward ones downstream.

    The result does not depend on the order in which branches are taken, because every union is
    over the schedules as given.

    Args:
        schedules: one per branch.
        branches: in the order of execution.
        scores: (N,) `volatility` or `scheduled_error`.
        top: n, how many branches; 0 changes nothing.

    Returns:
        N schedules, each a superset of the one given.
    """
    united = [tuple(schedule) for schedule in schedules]
    for u in np.argsort(-scores, kind="stable")[:top]:
        downstream = _downstream(u, schedules, branches)
        united[u] = tuple(sorted(set(schedules[u]).union(*downstream)))
    return united


def _downstream(
    u: int, schedules: Sequence[Sequence[int]], branches: Sequence[Branch]
) -> list[Sequence[int]]:
    """Schedules of the feed-forward branches of the layer of branch u or a later one."""
    return [
        schedule
        for branch, schedule in zip(branches, schedules, strict=True)
        if branch.kind == "ffn" and branch.layer >= branches[u].layer
    ]
