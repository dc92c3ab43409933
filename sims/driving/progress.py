"""How far a vehicle came along its route."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_M", "along_route", "progress_ratio"]

Floats = NDArray[np.float64]

LEAST_M = 2.0  # nuPlan's: what counts as progress at all
REACH_M = 10.0  # along the route, in one step: more is another part of a route that returns


def along_route(route: Floats, points: Floats) -> Floats:
    """Where on the route points are, one after the other.

    Each is looked for within 10 m along the route of the one before, so a route that crosses
    itself, or returns beside itself, is followed and not jumped on; the first is looked for
    everywhere.

    Args:
        route: (N, 2) m.
        points: (T, 2) m, in the order of time.

    Returns:
        (T,) m from the route's start, 0 on a route of fewer than two points.
    """
    sides = np.diff(route[:, :2], axis=0)
    lengths = np.hypot(*sides.T)
    starts, sides, lengths = route[:-1, :2][lengths > 0], sides[lengths > 0], lengths[lengths > 0]
    if not len(lengths):
        return np.zeros(len(points))
    begins = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    units = sides / lengths[:, None]
    found = np.zeros(len(points))
    low, high = 0.0, np.inf
    for index, point in enumerate(points):
        rows = slice(
            max(int(np.searchsorted(begins, low, side="right")) - 1, 0),
            int(np.searchsorted(begins, high, side="right")),
        )
        offset = point - starts[rows]
        share = (offset * units[rows]).sum(1)
        share = np.clip(share, np.maximum(low - begins[rows], 0), None)
        share = np.minimum(share, np.minimum(lengths[rows], high - begins[rows]))
        away = np.hypot(*(offset - units[rows] * share[:, None]).T)
        best = int(np.argmin(away))
        found[index] = begins[rows][best] + share[best]
        low, high = max(found[index] - REACH_M, 0.0), found[index] + REACH_M
    return found


def progress_ratio(progress_m: float, expected_m: float) -> float:
    """Progress against that of the recorded driver, in [0, 1]; both count as 2 m at the least.

    So standing is enough where the recorded driver stood; 0 where it went back more than 2 m.
    """
    if progress_m < -LEAST_M:
        return 0.0
    return min(1.0, max(progress_m, LEAST_M) / max(expected_m, LEAST_M))
