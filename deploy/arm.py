"""An arm: chunks of joint positions, an action a tick; it comes to rest where it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastloop.deploy.gate import ArmLimits, arm_faults
from fastloop.deploy.motion import Floats, Motion, State
from fastloop.deploy.stops import stop_profile

__all__ = ["Arm"]

STEP_S = 0.02


@dataclass(frozen=True)
class Arm:
    """Holds positions; its policy's actions are joint positions in rad, one a tick.

    Attributes:
        dim: joints.
        limits: what may be asked of it.
    """

    dim: int
    limits: ArmLimits = field(default_factory=ArmLimits)

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if len(bounds := getattr(self.limits, name)) not in (0, self.dim):
                raise ValueError(
                    f"limits.{name} has {len(bounds)} numbers for {self.dim} joints: one each"
                )

    def motion(self, actions: Floats, *, state: State, time: float, period_s: float) -> Motion:
        """An action a tick, the first at `time`."""
        if actions.ndim != 2 or actions.shape[1] != self.dim:
            raise ValueError(
                f"an arm of {self.dim} joints takes (T, {self.dim}), got {actions.shape}"
            )
        return Motion(time + np.arange(len(actions)) * period_s, actions)

    def faults(self, motion: Motion) -> list[str]:
        """Beyond the limits."""
        return arm_faults(motion, self.limits)

    def apart(self, motion: Motion, state: State, t: float) -> str:
        """In any joint."""
        away = np.abs(motion.at(t) - state.point)
        worst = int(away.argmax())
        if away[worst] <= self.limits.start_rad:
            return ""
        return (
            f"joint {worst} {away[worst]:.2f} rad from where it was measured, at most "
            f"{self.limits.start_rad:g}"
        )

    def leave_by(self, motion: Motion) -> float:
        """Progress along it takes half of `ramp_s` to come to rest."""
        return max(float(motion.times[0]), motion.end - self.limits.ramp_s / 2)

    def comfort_stop(self, motion: Motion, t: float) -> Motion:
        """Slower and slower along `motion`."""
        profile = stop_profile(
            1.0, 0.0, deceleration=2 / self.limits.ramp_s, jerk=4 / self.limits.ramp_s**2
        )
        times = self._times(profile.duration)
        progress = profile.sample(times)[:, 0]
        return Motion(t + times, np.stack([motion.at(t + ahead) for ahead in progress.tolist()]))

    def hard_stop(self, state: State, t: float, along: Motion | None) -> Motion:
        """The measured velocity runs out within `ramp_s`; then the arm holds, inside its bounds."""
        times = self._times(self.limits.ramp_s)
        share = np.clip(times / self.limits.ramp_s, 0.0, 1.0)
        drift = (share - share**2 / 2) * self.limits.ramp_s
        points = state.point + drift[:, None] * np.clip(
            state.rate, -self.limits.velocity, self.limits.velocity
        )
        if self.limits.low:
            points = np.maximum(points, np.minimum(self.limits.low, state.point))
        if self.limits.high:
            points = np.minimum(points, np.maximum(self.limits.high, state.point))
        return Motion(t + times, points)

    def _times(self, duration_s: float) -> Floats:
        return np.arange(max(2, math.ceil(duration_s / STEP_S) + 1)) * STEP_S
