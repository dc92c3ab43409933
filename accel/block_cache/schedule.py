"""When each branch is updated: the Adaptive Caching Scheduler and the fixed schedules.

A schedule is a sorted tuple of steps that starts with 0. The scheduler is that of Block-wise
Adaptive Caching (arXiv 2506.13456) in the form of its released code: a step that reuses is charged
the distance to its anchor, the step that filled the cache.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.config import METRICS

__all__ = ["adaptive_schedules", "distances", "uniform_schedule"]


def distances(activations: torch.Tensor, metric: str) -> torch.Tensor:
    """How far each step's activation is from every other's.

    Args:
        activations: (N, K, F) of N branches, flattened.
        metric: `cosine` is 1 - cos; `l1` the mean absolute difference; `relative_l2` the norm of
            the difference over the norm at the later index (the value that would be replaced).

    Returns:
        (N, K, K) float64; [n, a, t] is the error of using step a's value at step t.
    """
    if metric == "cosine":
        unit = torch.nn.functional.normalize(activations.double(), dim=-1)
        distance: torch.Tensor = 1 - unit @ unit.mT
        return distance
    if metric == "l1":
        return torch.cdist(activations, activations, p=1).double() / activations.shape[-1]
    if metric == "relative_l2":
        exact = "donot_use_mm_for_euclid_dist"
        difference = torch.cdist(activations, activations, compute_mode=exact).double()
        norm: torch.Tensor = activations.double().norm(dim=-1)
        return difference / norm.clamp(min=torch.finfo(activations.dtype).tiny)[:, None]
    raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")


def adaptive_schedules(distance: npt.NDArray[np.float64], budget: int) -> list[tuple[int, ...]]:
    """The schedules of `budget` updates with the smallest total distance to the anchors.

    Dynamic programming over (updates so far, last covered step), equal to exhaustive search; of
    schedules that cost the same, the one with the earlier updates.

    Args:
        distance: (N, K, K) from `distances`; the diagonal does not matter.
        budget: S, 1 to K.

    Returns:
        N schedules of exactly S steps.
    """
    steps = distance.shape[-1]
    _check_budget(budget, steps)
    cost = np.cumsum(np.triu(distance, 1), axis=-1)  # [n, a, b]: anchor a serves steps a..b
    cost[:, np.tri(steps, k=-1, dtype=bool)] = np.inf
    best, anchors = cost[:, 0], []  # best[n, b]: steps 0..b are covered
    for _ in range(1, budget):
        # [n, a - 1, b]: steps before a as before, then a serves up to b
        total = best[:, :-1, None] + cost[:, 1:]
        anchors.append(total.argmin(axis=1) + 1)
        best = total.min(axis=1)
    schedules = []
    for n in range(len(distance)):
        schedule, end = [], steps - 1
        for anchor in reversed(anchors):
            schedule.append(int(anchor[n, end]))
            end = schedule[-1] - 1
        schedules.append((0, *reversed(schedule)))
    return schedules


def uniform_schedule(steps: int, budget: int) -> tuple[int, ...]:
    """`budget` updates spread evenly over `steps`; every K/S steps where that is whole."""
    _check_budget(budget, steps)
    return tuple(i * steps // budget for i in range(budget))


def _check_budget(budget: int, steps: int) -> None:
    if not 1 <= budget <= steps:
        raise ValueError(
            f"a budget of {budget} updates does not fit {steps} denoise steps; choose 1 to {steps}"
        )
