"""What is published: a motion in a fixed frame over monotonic time, and the measured state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACCELERATION", "HEADING", "SPEED", "Floats", "Motion", "State", "X", "Y"]

Floats = NDArray[np.float64]

X, Y, HEADING, SPEED, ACCELERATION = range(5)
"""Columns of a vehicle's points: m, m, rad (unwrapped), m/s, m/s^2 along the path."""

SAME_S = 1e-6  # two moments closer than this are one


@dataclass(frozen=True)
class State:
    """What was measured.

    Attributes:
        time: monotonic s at which it held.
        point: (D,) as in `Motion`: of a vehicle x, y, heading, speed, acceleration in the frame of
            its odometry; of an arm its joint positions.
        rate: of a vehicle (1,) its yaw rate, rad/s; of an arm (D,) its joint velocities, rad/s.
    """

    time: float
    point: Floats
    rate: Floats


@dataclass(frozen=True)
class Motion:
    """Where to be when.

    Attributes:
        times: (T,) s of the monotonic clock, strictly rising.
        points: (T, D) float64: of a vehicle the columns `X` to `ACCELERATION`, of an arm its joint
            positions in rad. Between two moments they change linearly.
    """

    times: Floats
    points: Floats

    @property
    def end(self) -> float:
        """Its last moment, s."""
        return float(self.times[-1])

    def at(self, t: float) -> Floats:
        """The point (D,) at `t`; before the first and after the last moment that one's."""
        after = int(np.searchsorted(self.times, t))
        if after == 0 or after == len(self.times):
            edge: Floats = self.points[min(after, len(self.times) - 1)]
            return edge
        t0, t1 = self.times[after - 1 : after + 1]
        share = (t - t0) / (t1 - t0)
        between: Floats = (1 - share) * self.points[after - 1] + share * self.points[after]
        return between

    def since(self, t: float, *, step_s: float) -> Motion:
        """What is left of it at `t`: the point there, and all later ones.

        Past its end the last point is held: two points, `step_s` apart.
        """
        if t >= self.end - SAME_S:
            return Motion(np.array([t, t + step_s]), np.stack([self.points[-1]] * 2))
        first = int(np.searchsorted(self.times, t - SAME_S))
        if abs(self.times[first] - t) <= SAME_S:
            return Motion(self.times[first:], self.points[first:])
        times = np.concatenate([[t], self.times[first:]])
        return Motion(times, np.concatenate([self.at(t)[None], self.points[first:]]))
