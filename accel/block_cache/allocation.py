"""Which branches a total of updates goes to, and what a single update is worth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastloop.accel.block_cache.schedule import adaptive_schedules

__all__ = ["allocate", "worth"]

Distances = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def allocate(distance: Distances, total: int) -> Mask:
    """The plan of `total` updates with the smallest sum of distances of reused steps.

    Equal to exhaustive search: the schedules of `adaptive_schedules` with the budgets that a
    dynamic program over branches finds (as DiffSparse, arXiv 2604.03674, over layers).

    Args:
        distance: (N, K, K) non-negative; [n, a, t] is the error of using step a's value at step t.
        total: N to K N.

    Returns:
        (K, N) bool, true where branch n is computed at step k.
    """
    n, steps = distance.shape[:2]
    most = min(steps, total - n + 1)
    best = np.full(total + 1, np.inf)  # best[s]: the branches so far share s updates
    best[0] = 0
    choices = []
    for costs in _costs(distance, most):
        options = np.full((most, total + 1), np.inf)
        for s in range(1, most + 1):
            options[s - 1, s:] = best[:-s] + costs[s - 1]
        choices.append(options.argmin(axis=0) + 1)
        best = options.min(axis=0)
    budgets: list[int] = []
    for choice in reversed(choices):
        budgets.insert(0, int(choice[total]))
        total -= budgets[0]
    mask = np.zeros((steps, n), dtype=bool)
    for branch, schedule in enumerate(adaptive_schedules(distance, budgets)):
        mask[list(schedule), branch] = True
    return mask


def _costs(distance: Distances, most: int) -> Distances:
    """(N, most) sums of distances with the best schedules of 1, 2, ... updates."""
    charge = np.cumsum(np.triu(distance, 1), axis=-1)  # [n, a, b]: anchor a serves steps a..b
    charge[:, np.tri(distance.shape[-1], k=-1, dtype=bool)] = np.inf
    best = charge[:, 0]
    costs = [best[:, -1]]
    for _ in range(1, most):
        best = (best[:, :-1, None] + charge[:, 1:]).min(axis=1)
        costs.append(best[:, -1])
    return np.stack(costs, axis=1)


def worth(distance: Distances, mask: Mask) -> Distances:
    """What each update saves, or would save, between the updates before and after it.

    Args:
        distance: (N, K, K) as in `allocate`.
        mask: (K, N) bool, true in its first row.

    Returns:
        (K, N), infinite in the first row, which is always computed.
    """
    steps, n = mask.shape
    served = np.zeros((n, steps, steps + 1))  # served[n, a, t]: anchor a serves steps up to t - 1
    served[:, :, 1:] = np.cumsum(np.triu(distance, 1), axis=-1)
    k, branch = np.indices(mask.shape)
    last = np.maximum.accumulate(np.where(mask, k, 0), axis=0)
    before = np.concatenate([last[:1], last[:-1]])
    coming = np.minimum.accumulate(np.where(mask, k, steps)[::-1], axis=0)[::-1]
    after = np.concatenate([coming[1:], np.full((1, n), steps)])
    stale = served[branch, before, after] - served[branch, before, k]
    saved: Distances = stale - served[branch, k, after]
    saved[0] = np.inf
    return saved
