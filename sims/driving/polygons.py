"""Many polygons at once, clipped by planes.

Polygons lie one after another in ``points`` (P, D), each with as many as ``counts`` (M,) says; a
plane is (D + 1,) and keeps where ``plane @ (*point, 1) >= 0``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip", "firsts"]


def firsts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) where each polygon begins."""
    starts: NDArray[np.int64] = np.cumsum(counts) - counts
    return starts


def clip(
    points: NDArray[np.float64], counts: NDArray[np.int64], planes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """What of each polygon all `planes` (K, D + 1) keep (Sutherland and Hodgman, 1974).

    Parts of a polygon that a plane cuts off from each other stay one polygon, joined along that
    plane; filled by the even-odd rule they look apart.

    Returns:
        The points and counts of what is left, and which polygons (M',) these were.
    """
    kept = np.arange(len(counts))
    for plane in planes:
        side = points @ plane[:-1] + plane[-1]
        inside = side >= 0
        if inside.all():
            continue
        starts = firsts(counts)
        following = np.arange(1, len(points) + 1)
        following[starts + counts - 1] = starts
        crossing = inside != inside[following]
        here, there = np.flatnonzero(crossing), following[crossing]
        share = side[here] / (side[here] - side[there])
        cuts = points[here] + share[:, None] * (points[there] - points[here])

        emitted = inside + crossing.astype(np.int64)
        places = firsts(emitted)
        clipped = np.empty((int(emitted.sum()), points.shape[1]))
        clipped[places[inside]] = points[inside]
        clipped[places[here] + inside[here]] = cuts
        counts = np.add.reduceat(emitted, starts)
        points, kept, counts = clipped, kept[counts > 0], counts[counts > 0]
    return points, counts, kept
