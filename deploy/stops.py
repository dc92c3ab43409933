"""Stops with bounded jerk: pure functions, computed before they are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastloop.deploy.motion import Floats

__all__ = ["StopProfile", "stop_profile"]


@dataclass(frozen=True)
class StopProfile:
    """Phases of constant jerk that end in standstill.

    Attributes:
        speed, acceleration: at the beginning, m/s and m/s^2.
        jerks, durations: of the phases, m/s^3 and s.
    """

    speed: float
    acceleration: float
    jerks: tuple[float, ...]
    durations: tuple[float, ...]

    @property
    def duration(self) -> float:
        """Seconds until standstill."""
        return sum(self.durations)

    @property
    def distance(self) -> float:
        """Metres until standstill."""
        return self._phases()[-1][1]

    def sample(self, times: Floats) -> Floats:
        """(N, 3) distance (m), speed (m/s) and acceleration (m/s^2) at `times` (N,) s after the
        beginning; after the end it stands."""
        phases = np.array(self._phases())
        phase = phases[np.searchsorted(phases[:, 0], times + 1e-9, side="right") - 1]
        begin, s, v, a, jerk = phase.T
        t = np.maximum(times - begin, 0.0)
        distance = s + t * (v + t * (a / 2 + t * jerk / 6))
        speed = np.maximum(v + t * (a + t * jerk / 2), 0.0)
        return np.column_stack([distance, speed, a + jerk * t])

    def _phases(self) -> list[tuple[float, float, float, float, float]]:
        """Time, distance, speed, acceleration and jerk at the beginning of each phase, and of the
        standstill behind them."""
        t, s, v, a = 0.0, 0.0, self.speed, self.acceleration
        phases = []
        for jerk, d in zip(self.jerks, self.durations, strict=True):
            phases.append((t, s, v, a, jerk))
            t, s = t + d, s + d * (v + d * (a / 2 + d * jerk / 6))
            v, a = v + d * (a + d * jerk / 2), a + jerk * d
        return [*phases, (t, s, 0.0, 0.0, 0.0)]


def stop_profile(
    speed: float, acceleration: float, *, deceleration: float, jerk: float
) -> StopProfile:
    """The quickest stop from `speed` that brakes with at most `deceleration` and `jerk`.

    Brakes are built up, held, and let go, so that the vehicle stands without a nod. One that brakes
    harder than `deceleration` already eases; where it would stand before the brakes are let go at
    `jerk`, they are let go as quickly as that needs.

    Args:
        speed: m/s, 0 or more.
        acceleration: m/s^2 at the beginning, negative when it brakes.
        deceleration: m/s^2, positive.
        jerk: m/s^3, positive.

    Returns:
        at most three phases: build up, hold, let go.
    """
    if speed <= 1e-9:
        return StopProfile(0.0, 0.0, (), ())
    brake = -acceleration
    if brake > 0 and brake**2 / (2 * jerk) >= speed:
        ending = 2 * speed / brake  # from `brake` to 0 in one go
        return StopProfile(speed, acceleration, (brake / ending,), (ending,))
    if brake > deceleration:
        peak, loss = deceleration, (brake**2 - deceleration**2) / (2 * jerk)
        loss += deceleration**2 / (2 * jerk)
        if loss > speed:  # no time to ease to the bound and let go: ease all the way
            ending = 2 * speed / brake
            return StopProfile(speed, acceleration, (brake / ending,), (ending,))
        first = jerk
    else:
        peak = min(deceleration, math.sqrt(jerk * speed + brake**2 / 2))
        loss = (2 * peak**2 - brake**2) / (2 * jerk)
        first = -jerk
    held = max(0.0, speed - loss) / peak
    return StopProfile(
        speed, acceleration, (first, 0.0, jerk), (abs(peak - brake) / jerk, held, peak / jerk)
    )
