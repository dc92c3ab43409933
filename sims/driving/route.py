"""A route as its driver reads it: where it goes on, and whether it turns."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.poses import Pose, wrapped

__all__ = ["INTENTS", "Route", "resampled"]

INTENTS = ("unknown", "straight", "left", "right")  # WOD-E2E's numbering
TURN = math.radians(30)
BEHIND, AHEAD, AHEAD_S = 5.0, 20.0, 4.0  # m and s: where a turn is looked for


def resampled(line: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` points (count, 2) evenly along a line (N, 2), N >= 1, both its ends included."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.append(0.0, np.cumsum(steps))
    stations = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(stations, along, line[:, axis]) for axis in (0, 1)], axis=-1)


class Route:
    """A route, which may be missing.

    Args:
        line: (N, 2) m in the scene, in its direction; none where N < 2 or nothing is between.
    """

    def __init__(self, line: NDArray[np.float64]) -> None:
        length = float(np.hypot(*np.diff(line, axis=0).T).sum()) if len(line) > 1 else 0.0
        self.length = length
        if length:
            self._points = resampled(line, 1 + math.ceil(length))
            self._stations = np.linspace(0.0, length, len(self._points))
            steps = np.diff(self._points, axis=0)
            self._directions = np.arctan2(steps[:, 1], steps[:, 0])
            turns = wrapped(np.diff(self._directions))
            self._turned = np.append(0.0, np.cumsum(turns))

    def station(self, pose: Pose) -> float:
        """How far along the route a vehicle is, m: beside it, where the route goes its way."""
        offsets = [pose.x, pose.y] - self._points[:-1]
        along = np.stack([np.cos(self._directions), np.sin(self._directions)], -1)
        forward = np.clip((offsets * along).sum(-1), 0.0, self._stations[1])
        distance = np.hypot(*(offsets - forward[:, None] * along).T)
        # A route that comes back beside itself: not the part that goes the other way.
        against = np.cos(self._directions - pose.heading) < 0
        nearest = int((distance + self.length * against).argmin())
        return float(self._stations[nearest] + forward[nearest])

    def ahead(self, pose: Pose, count: int, spacing: float) -> NDArray[np.float64]:
        """Points (count, 2) from beside the vehicle on, `spacing` m apart; the end is repeated."""
        if not self.length:
            return np.tile([pose.x, pose.y], (count, 1))
        stations = self.station(pose) + spacing * np.arange(count)
        return np.stack(
            [np.interp(stations, self._stations, self._points[:, axis]) for axis in (0, 1)], -1
        )

    def intent(self, pose: Pose, speed: float) -> int:
        """Which way the route goes: an index in `INTENTS`.

        Left or right where its direction changes by more than 30 degrees on the whole from 5 m
        before the vehicle to 20 m (or 4 s at `speed`, where that is more) ahead of it: a bend of
        the road counts like a junction. Nothing but the route says it, so it knows no more of the
        future than a navigation system.
        """
        if not self.length:
            return INTENTS.index("unknown")
        here = self.station(pose)
        window = np.array([here - BEHIND, here + max(AHEAD, AHEAD_S * speed)])
        before, after = np.interp(window, self._stations[:-1], self._turned)
        if abs(after - before) <= TURN:
            return INTENTS.index("straight")
        return INTENTS.index("left" if after > before else "right")
