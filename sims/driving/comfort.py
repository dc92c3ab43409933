"""Accelerations, jerks and turn rates of a drive, smoothed and bounded as in nuPlan."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from fastloop.sims.driving.motion import Motion

__all__ = ["BOUNDS", "Comfort", "comfort"]

Floats = NDArray[np.float64]

# m/s^2, m/s^2, rad/s, rad/s^2, m/s^3 and m/s^3: the extremes of nuPlan's expert drivers.
BOUNDS = {
    "longitudinal_acceleration": (-4.05, 2.40),
    "lateral_acceleration": (-4.89, 4.89),
    "yaw_rate": (-0.95, 0.95),
    "yaw_acceleration": (-1.93, 1.93),
    "longitudinal_jerk": (-4.13, 4.13),
    "jerk": (-8.37, 8.37),
}


@dataclass(frozen=True)
class Comfort:
    """Of a vehicle at T moments, all (T,), in its own frame: m, rad, s.

    Attributes:
        longitudinal_acceleration, lateral_acceleration: forward and left.
        yaw_rate, yaw_acceleration: counter-clockwise.
        longitudinal_jerk: change of the longitudinal acceleration.
        jerk: change of the acceleration's magnitude, as in nuPlan.
    """

    longitudinal_acceleration: Floats
    lateral_acceleration: Floats
    yaw_rate: Floats
    yaw_acceleration: Floats
    longitudinal_jerk: Floats
    jerk: Floats

    def within(self) -> dict[str, bool]:
        """Which stay within `BOUNDS` throughout."""
        return {
            name: bool(((getattr(self, name) > low) & (getattr(self, name) < high)).all())
            for name, (low, high) in BOUNDS.items()
        }

    @property
    def comfortable(self) -> bool:
        """Whether all do."""
        return all(self.within().values())


def comfort(ego: Motion, step_s: float) -> Comfort:
    """Differentiate a drive.

    Savitzky-Golay filters of nuPlan's windows: 8 moments for accelerations, which are the changes
    of velocity, 15 for jerks, 5 for turn rates. All is 0 in a drive of fewer than 4 moments.

    Args:
        ego: at T moments.
        step_s: between two of them.
    """
    if len(ego) < 4:
        return Comfort(*(np.zeros(len(ego)) for _ in fields(Comfort)))
    heading = np.unwrap(ego.heading)
    change = _derivative(ego.velocity, step_s, window=8)
    along = (change * ego.along).sum(1)
    aside = (change * ego.aside).sum(1)
    return Comfort(
        longitudinal_acceleration=along,
        lateral_acceleration=aside,
        yaw_rate=_derivative(heading, step_s, window=5),
        yaw_acceleration=_derivative(heading, step_s, window=5, order=3, times=2),
        longitudinal_jerk=_derivative(along, step_s, window=15),
        jerk=_derivative(np.hypot(along, aside), step_s, window=15),
    )


def _derivative(
    values: Floats, step_s: float, *, window: int, order: int = 2, times: int = 1
) -> Floats:
    smooth: Floats = savgol_filter(
        values, min(window, len(values)), order, deriv=times, delta=step_s, axis=0
    )
    return smooth
