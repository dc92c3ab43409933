"""When each branch is updated: the Adaptive Caching Scheduler and the fixed schedules.

A schedule is a sorted tuple of steps that starts with 0. The scheduler is that of Block-wise
Adaptive Caching (arXiv 2506.13456), in two forms. In the released code a step that reuses is
charged the distance to its anchor, the step that filled the cache. In the paper it is charged the
distance to the step before, so that the charges do not depend on where the cache was filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.config import METRICS, OBJECTIVES

__all__ = [
    "adaptive_schedules",
    "delta_schedules",
    "distances",
    "uniform_schedule",
    "zeus_schedule",
]


def distances(activations: torch.Tensor, metric: str) -> torch.Tensor:
    """How far each step's activation is from every other's.

    Args:
        activations: (N, K, F) of N branches, flattened.
        metric: `cosine` is 1 - cos; `l1` the mean absolute difference; `relative_l2` the norm of
            the difference over the norm at the later index (the value that would be replaced).

    Returns:
        (N, K, K) float64; [n, a, t] is the error of using step a's value at step t.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    # Branch by branch: in double precision all at once would not fit for a large network.
    return torch.stack([_distance(branch.double(), metric) for branch in activations])


def _distance(branch: torch.Tensor, metric: str) -> torch.Tensor:
    if metric == "cosine":
        unit = torch.nn.functional.normalize(branch, dim=-1)
        distance: torch.Tensor = 1 - unit @ unit.mT
        return distance
    if metric == "l1":
        return _pairwise(branch, p=1) / branch.shape[-1]
    norm: torch.Tensor = branch.norm(dim=-1)
    return _pairwise(branch, p=2) / norm.clamp(min=torch.finfo(branch.dtype).tiny)


def _pairwise(branch: torch.Tensor, p: float) -> torch.Tensor:
    """(K, K) p-norms of differences; an order of magnitude faster than `torch.cdist` for p = 1."""
    steps = len(branch)
    upper = branch.new_zeros(steps, steps)
    rows, columns = torch.triu_indices(steps, steps, offset=1, device=branch.device)
    upper[rows, columns] = torch.nn.functional.pdist(branch, p)
    return upper + upper.mT


def adaptive_schedules(
    distance: npt.NDArray[np.float64], budget: int | Sequence[int], objective: str = "anchor"
) -> list[tuple[int, ...]]:
    """The schedules of `budget` updates that make the total distance of reused steps smallest.

    Equal to exhaustive search; of schedules that cost the same, the one with the earlier updates.

    Args:
        distance: (N, K, K) from `distances`; the diagonal does not matter.
        budget: S, 1 to K; one for all branches, or N.
        objective: `anchor` is the distance to the last update, `consecutive` that to the step
            before.

    Returns:
        N schedules of exactly S steps.
    """
    n, steps = distance.shape[:2]
    budgets = [budget] * n if isinstance(budget, int) else list(budget)
    for each in budgets:
        _check_budget(each, steps)
    if objective == "anchor":
        return _nearest_anchors(distance, budgets)
    if objective == "consecutive":
        return _largest_changes(distance, budgets)
    raise ValueError(f"unknown objective {objective!r}; choose one of {', '.join(OBJECTIVES)}")


def _nearest_anchors(
    distance: npt.NDArray[np.float64], budgets: list[int]
) -> list[tuple[int, ...]]:
    """Dynamic programming over (updates so far, last covered step)."""
    steps = distance.shape[-1]
    cost = np.cumsum(np.triu(distance, 1), axis=-1)  # [n, a, b]: anchor a serves steps a..b
    cost[:, np.tri(steps, k=-1, dtype=bool)] = np.inf
    best, anchors = cost[:, 0], []  # best[n, b]: steps 0..b are covered
    for _ in range(1, max(budgets)):
        # [n, a - 1, b]: steps before a as before, then a serves up to b
        total = best[:, :-1, None] + cost[:, 1:]
        anchors.append(total.argmin(axis=1) + 1)
        best = total.min(axis=1)
    schedules = []
    for n, budget in enumerate(budgets):
        schedule, end = [], steps - 1
        for anchor in reversed(anchors[: budget - 1]):
            schedule.append(int(anchor[n, end]))
            end = schedule[-1] - 1
        schedules.append((0, *reversed(schedule)))
    return schedules


def _largest_changes(
    distance: npt.NDArray[np.float64], budgets: list[int]
) -> list[tuple[int, ...]]:
    """The sum over reused steps is smallest when the updates are at the largest terms."""
    changes = np.diagonal(distance, offset=1, axis1=1, axis2=2)  # (N, K - 1), of steps 1..
    order = np.argsort(-changes, axis=1, kind="stable") + 1
    return [
        (0, *sorted(largest[: budget - 1].tolist()))
        for largest, budget in zip(order, budgets, strict=True)
    ]


def uniform_schedule(steps: int, budget: int) -> tuple[int, ...]:
    """`budget` updates spread evenly over `steps`; every K/S steps where that is whole."""
    _check_budget(budget, steps)
    return tuple(i * steps // budget for i in range(budget))


def delta_schedules(
    layers: Sequence[int], steps: int, budget: int, depth: float, boundary: float
) -> list[tuple[int, ...]]:
    """The range-and-phase schedules of Delta-DiT (arXiv 2406.01125).

    Its cache, the difference that a range of layers makes, is the sum of their branches.

    Args:
        layers: the layer of each branch.
        steps, budget: K, and S updates, evenly spread, of what is being reused.
        depth: share of the layers that are reused at a time, at least one layer: the rear ones
            early in the chain, the front ones late. The others are computed at every step.
        boundary: share of the chain at which late begins.

    Returns:
        One schedule a branch.

    Raises:
        ValueError: a network of one layer has no front and rear.
    """
    order = sorted(set(layers))
    if len(order) == 1:
        raise ValueError(
            "accel=delta goes from rear to front layers, and this network is cached as one; choose "
            "uniform or unified"
        )
    count, late = max(1, round(depth * len(order))), round(boundary * steps)
    front, rear = order[:count], order[-count:]
    refreshed = uniform_schedule(steps, budget)
    return [
        tuple(
            k for k in range(steps) if k in refreshed or layer not in (rear if k < late else front)
        )
        for layer in layers
    ]


def zeus_schedule(steps: int, budget: int) -> tuple[int, ...]:
    """The schedule of ZEUS: all of the first fifth and of the end, evenly in between.

    At 32 of 50 steps this is its published default: every second step from 11 to 45 is skipped.
    """
    _check_budget(budget, steps)
    head = max(min(round(0.2 * steps), budget // 2), 1)
    tail = min(round(0.06 * steps), budget // 6)
    between, left = steps - head - tail, budget - head - tail
    evenly = (head + (i + 1) * between // left - 1 for i in range(left))
    return (*range(head), *evenly, *range(steps - tail, steps))


def _check_budget(budget: int, steps: int) -> None:
    if not 1 <= budget <= steps:
        raise ValueError(
            f"a budget of {budget} updates does not fit {steps} denoise steps; choose 1 to {steps}"
        )
