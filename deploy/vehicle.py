"""A vehicle: plans of waypoints in its odometry's frame, stops along its path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastloop.deploy.gate import VehicleLimits, vehicle_faults
from fastloop.deploy.motion import ACCELERATION, HEADING, SPEED, Floats, Motion, State, X, Y
from fastloop.deploy.stops import StopProfile, stop_profile

__all__ = ["Vehicle"]

STOP_STEP_S = 0.1  # between two points of a stop


@dataclass(frozen=True)
class Vehicle:
    """Follows paths; its policy's actions are whole plans (`plan_action`): an age, and waypoints in
    the frame of the observation.

    Attributes:
        plan_hz: waypoints a second.
        limits: what may be asked of it.
    """

    plan_hz: float
    limits: VehicleLimits = field(default_factory=VehicleLimits)
    dim: int = 5

    def motion(self, actions: Floats, *, state: State, time: float, period_s: float) -> Motion:
        """The first action's waypoints, and the place they were seen from, as points."""
        if (
            actions.ndim != 2
            or not len(actions)
            or actions.shape[1] < 5
            or actions.shape[1] % 2 == 0
        ):
            raise ValueError(
                f"a plan is an age and two or more waypoints (x, y); got {actions.shape}"
            )
        if not np.isfinite(actions[0]).all():
            raise ValueError("it is not finite")
        waypoints = np.concatenate([np.zeros((1, 2)), actions[0, 1:].reshape(-1, 2)])
        times = state.time + np.arange(len(waypoints)) / self.plan_hz - actions[0, 0]
        cos, sin = math.cos(state.point[HEADING]), math.sin(state.point[HEADING])
        places = waypoints @ np.array([[cos, sin], [-sin, cos]]) + state.point[[X, Y]]
        return Motion(times, self._points(places, times, state))

    def _points(self, places: Floats, times: Floats, state: State) -> Floats:
        """Headings, speeds and accelerations of `places` (T, 2), the first of which is `state`."""
        steps = np.diff(places, axis=0)
        lengths = np.hypot(steps[:, 0], steps[:, 1])
        headings = np.empty(len(places))
        headings[0] = last = state.point[HEADING]
        sign = np.ones(len(lengths))
        since = 0  # the place from which it has to come so far that it has a direction
        for k in range(1, len(places)):
            east, north = (places[k] - places[since]).tolist()
            if math.hypot(east, north) > self.limits.shortest_m:
                turn = math.remainder(math.atan2(north, east) - last, 2 * math.pi)
                if abs(turn) > math.pi / 2:
                    sign[since:k] = -1.0  # it rolls backward and keeps its heading
                else:
                    last = last + turn
                since = k
            headings[k] = last
        dt = np.diff(times)
        # Over an interval the mean speed is known; at its ends, the mean of both sides.
        mean = sign * lengths / dt
        speed = np.concatenate([[state.point[SPEED]], (mean[:-1] + mean[1:]) / 2, mean[-1:]])
        pull = np.diff(speed) / dt
        pull = np.concatenate([pull, [0.0 if abs(speed[-1]) < 1e-3 else pull[-1]]])
        return np.column_stack([places, headings, speed, pull])

    def faults(self, motion: Motion) -> list[str]:
        """Beyond the limits."""
        return vehicle_faults(motion, self.limits)

    def apart(self, motion: Motion, state: State, t: float) -> str:
        """In place, heading or speed, with the measured motion carried on to `t`."""
        planned, measured = motion.at(t), self._carried_on(state, t)
        away = math.hypot(planned[X] - measured[X], planned[Y] - measured[Y])
        turned = abs(math.remainder(planned[HEADING] - measured[HEADING], 2 * math.pi))
        faster = abs(planned[SPEED] - measured[SPEED])
        if not away <= self.limits.start_m:
            return f"{away:.2f} m from the measured place, at most {self.limits.start_m:g}"
        if not turned <= self.limits.start_rad:
            return f"{turned:.2f} rad from the measured heading, at most {self.limits.start_rad:g}"
        if not faster <= self.limits.start_speed:
            return f"{faster:.2f} m/s from the measured speed, at most {self.limits.start_speed:g}"
        return ""

    def _carried_on(self, state: State, t: float) -> Floats:
        """The measured point at `t`, if it goes on with its speed and turn rate."""
        dt = t - state.time
        x, y, heading, speed, _ = state.point.tolist()
        turned = float(state.rate[0]) * dt
        chord = speed * dt * float(np.sinc(turned / 2 / math.pi))
        toward = heading + turned / 2
        return np.array(
            [x + chord * math.cos(toward), y + chord * math.sin(toward), heading + turned, speed, 0]
        )

    def leave_by(self, motion: Motion) -> float:
        """By the distance that is left of its path, and the speed there; a plan that ends standing
        may be followed to its end."""
        points = motion.points
        if abs(points[-1, SPEED]) < 0.1:
            return motion.end
        left = np.append(np.cumsum(_lengths(points)[::-1])[::-1], 0.0)
        for k in range(len(points) - 1, -1, -1):
            if self._profile(points[k]).distance <= left[k]:
                return float(motion.times[k])
        return float(motion.times[0])

    def comfort_stop(self, motion: Motion, t: float) -> Motion:
        """On what is left of its path, braking harder than comfort where that is too short; beyond
        its end straight on."""
        start = motion.at(t)
        path = motion.since(t, step_s=STOP_STEP_S).points
        left = float(_lengths(path).sum())
        stops = (self._profile(start, firmness) for firmness in (0.0, 0.25, 0.5, 1.0))
        profile = next((stop for stop in stops if stop.distance <= left), None)
        return _along(profile or self._profile(start, 1.0), t, path)

    def hard_stop(self, state: State, t: float, along: Motion | None) -> Motion:
        """In the lane that `along` says where the vehicle is near it, else straight on."""
        start = self._carried_on(state, t)
        start[ACCELERATION] = min(0.0, state.point[ACCELERATION])
        path = start[None]
        if along is not None and not self.apart(along, state, t):
            rest = along.since(t, step_s=STOP_STEP_S).points[1:]
            toward = np.array([math.cos(start[HEADING]), math.sin(start[HEADING])])
            before = (rest[:, [X, Y]] - start[[X, Y]]) @ toward > 0
            path = np.concatenate([path, rest[int(before.argmax()) :][: len(rest) * before.any()]])
            path[:, HEADING] = np.unwrap(path[:, HEADING])
        return _along(self._profile(start, 1.0), t, path)

    def _profile(self, start: Floats, firmness: float = 0.0) -> StopProfile:
        """From comfort (0) to as hard as possible (1)."""
        limits = self.limits
        return stop_profile(
            max(0.0, float(start[SPEED])),
            float(start[ACCELERATION]),
            deceleration=_between(limits.stop_deceleration, limits.hard_deceleration, firmness),
            jerk=_between(limits.stop_jerk, limits.hard_jerk, firmness),
        )


def _along(profile: StopProfile, t: float, path: Floats) -> Motion:
    """`profile` from `t` on along the places of `path`, straight on beyond its end."""
    count = max(2, math.ceil(profile.duration / STOP_STEP_S) + 1)
    times = np.arange(count) * STOP_STEP_S
    traveled = profile.sample(times)
    lengths = _lengths(path)
    keep = np.append(True, lengths > 1e-6)
    path, stations = path[keep], np.append(0.0, np.cumsum(lengths[keep[1:]]))
    s = traveled[:, 0]
    points = np.column_stack([np.interp(s, stations, path[:, c]) for c in (X, Y, HEADING)])
    beyond = np.maximum(0.0, s - stations[-1])[:, None]
    toward = path[-1, HEADING]
    points[:, :2] += beyond * np.array([[math.cos(toward), math.sin(toward)]])
    return Motion(t + times, np.column_stack([points, traveled[:, 1:]]))


def _between(soft: float, hard: float, share: float) -> float:
    return soft + share * (hard - soft)


def _lengths(points: Floats) -> Floats:
    return np.hypot(np.diff(points[:, X]), np.diff(points[:, Y]))
