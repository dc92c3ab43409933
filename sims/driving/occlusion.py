"""Which of upright boxes hide which, seen from a point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["beyond_sides", "far_to_near"]

TOUCHING = 1e-6  # m2: boxes that overlap by less are beside each other


def far_to_near(corners: NDArray[np.float64], viewpoint: NDArray[np.float64]) -> list[int]:
    """An order of painting in which boxes come after all that they hide.

    The distance of their middles is not enough: a bus can hide a pedestrian who is nearer than its
    middle. A box cannot be hidden by another where the line along a side of one of them parts the
    two and has it on the viewer's side. Where boxes overlap or hide each other in a circle, the
    farthest is painted first.

    Args:
        corners: (K, 4, 2) of the boxes, counter-clockwise.
        viewpoint: (2,) of the viewer, in the same frame.
    """
    count = len(corners)
    beyond = beyond_sides(corners, corners.reshape(-1, 2)).reshape(count, 4, count, 4)
    apart = (beyond >= -TOUCHING).all(-1)  # [i, e, j]: j is beyond side e of i
    viewed = beyond_sides(corners, viewpoint[None])  # [i, e, 0]: the viewer is beyond side e of i
    spared = (apart & (viewed <= 0)).any(1) | (apart & (viewed >= 0)).any(1).T
    hides = ~spared.T  # [i, j]: i may hide j
    np.fill_diagonal(hides, False)

    distance = np.linalg.norm(corners.mean(1) - viewpoint, axis=-1)
    waits_for = hides.sum(1)
    left = np.ones(count, bool)
    order = []
    for _ in range(count):
        free = left & (waits_for == 0)
        candidates = np.flatnonzero(free if free.any() else left)
        farthest = int(candidates[np.argmax(distance[candidates])])
        order.append(farthest)
        left[farthest] = False
        waits_for -= hides[:, farthest]
    return order


def beyond_sides(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, 4, N) how far points (N, 2) are beyond each side of each box, times its length."""
    sides = np.roll(corners, -1, 1) - corners
    outwards = np.stack([sides[..., 1], -sides[..., 0]], -1)
    beyond: NDArray[np.float64] = outwards @ points.T - (outwards * corners).sum(-1)[..., None]
    return beyond
