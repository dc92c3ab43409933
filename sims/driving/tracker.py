"""Following a plan: from waypoints in time to a steering angle and an acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from fastloop.sims.driving.poses import Pose, rear_axle_pose, to_world
from fastloop.sims.driving.scene import Body

__all__ = ["Tracker", "place"]

PREVIEW_S = 1.0  # the plan is met that much later: shorter is tighter and less steady
NEAREST, PREVIEW_STEER_S = 2.5, 0.6  # m and s: how far ahead the path is aimed at
CATCH_UP = 3.0  # m: a vehicle that is further off its plan's place makes up for no more at a time
CREEP = 0.1  # m/s: a plan slower than this on the whole stands still
GENTLE = 3.0  # m/s^2: how a vehicle whose plan has ended is stopped
SEPARATE = 0.5  # m: between points closer than this, noise decides where the path goes
FINEST = 30  # pieces of the path between two waypoints, about 1 m each
SHARPEST = -0.5  # cosine of 120 degrees: a turn beyond it is a reversal


def place(
    waypoints: ArrayLike, pose: Pose, *, hz: float, age_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A plan in the scene, its origin first, and when its points are due.

    Args:
        waypoints: (T, 2) m in the frame of `pose`; waypoint k, from 1, is for ``k / hz`` seconds
            after it.
        pose: where the rear axle was when the observation was made.
        age_s: how long ago that was.

    Returns:
        (T + 1, 2) m, and (T + 1,) seconds from now.
    """
    points = np.vstack([[0.0, 0.0], np.asarray(waypoints, np.float64)])
    return to_world(points, pose), np.arange(len(points)) / hz - age_s


@dataclass(frozen=True)
class Tracker:
    """Follows plans in time as well as in space; it remembers nothing between two ticks.

    Along the path it accelerates so that, `PREVIEW_S` from now, the vehicle is where the plan is
    then. Across it steers as pure pursuit does (Coulter, Implementation of the pure pursuit path
    tracking algorithm, CMU 1992). Up to the time of its last waypoint a plan is followed as if it
    went on at its last speed; after that the vehicle is stopped gently, straight ahead of the
    path's end. Nothing makes it reverse: where a plan does, the vehicle waits.

    Attributes:
        wheelbase: m.
        max_steer: rad.
        max_accel, max_brake: m/s^2, both positive.
        dt: s between two ticks.
        rear_axle: m from the middle of the vehicle's box back to its rear axle, whose way the plan
            is; half the wheelbase where it is None.
    """

    wheelbase: float
    max_steer: float
    max_accel: float
    max_brake: float
    dt: float
    rear_axle: float | None = None

    def control(self, plan: ArrayLike, times: ArrayLike, ego: Body) -> tuple[float, float]:
        """What to do for one tick.

        Args:
            plan: (T, 2) m in the scene, of the rear axle; those passed tell where the plan is now.
            times: (T,) s from now, rising, negative for waypoints that are passed.
            ego: the vehicle.

        Returns:
            Steering angle (rad, positive to the left) and acceleration (m/s^2), within the limits.

        Raises:
            ValueError: for shapes that do not agree, no waypoint, numbers that are not finite, or
                times that do not rise.
        """
        points, due = np.asarray(plan, np.float64), np.asarray(times, np.float64)
        _check(points, due)
        offset = self.wheelbase / 2 if self.rear_axle is None else self.rear_axle
        pose = rear_axle_pose(ego, offset)
        speed = max(0.0, ego.vx * np.cos(pose.heading) + ego.vy * np.sin(pose.heading))
        here = np.array([pose.x, pose.y])
        if due[0] > 0:
            points, due = np.vstack([here, points]), np.append(0.0, due)
        path = _Path(points, pose.heading)
        station = float(path.project(here[None])[0])
        accel = self._accelerate(path.stations, due, station, speed)
        ahead = max(NEAREST, PREVIEW_STEER_S * speed)
        return self._steer(path.at(station + ahead), pose), accel

    def normalized(self, steer: float, accel: float) -> tuple[float, float]:
        """A control as shares, -1 to 1, of the limits: steering (positive to the left) and throttle
        (negative brakes)."""
        limit = self.max_accel if accel > 0 else self.max_brake
        return (
            float(np.clip(steer / self.max_steer, -1, 1)),
            float(np.clip(accel / limit, -1, 1)),
        )

    def _steer(self, target: NDArray[np.float64], pose: Pose) -> float:
        dx, dy = target[0] - pose.x, target[1] - pose.y
        distance = np.hypot(dx, dy)
        aside = np.cos(pose.heading) * dy - np.sin(pose.heading) * dx
        curvature = 2 * aside / max(distance, NEAREST / 2) ** 2
        return float(
            np.clip(np.arctan(self.wheelbase * curvature), -self.max_steer, self.max_steer)
        )

    def _accelerate(
        self, stations: NDArray[np.float64], due: NDArray[np.float64], station: float, speed: float
    ) -> float:
        standing = -speed / self.dt
        left = due[-1]
        if left <= 1e-9:
            return float(max(standing, -min(GENTLE, self.max_brake)))
        now, then = _where(stations, due, np.array([0.0, PREVIEW_S]))
        if speed < 2 * CREEP and stations[-1] - station < CREEP * left:
            return float(max(standing, -self.max_brake))
        missing = then - now + np.clip(now - station, -CATCH_UP, CATCH_UP)
        accel = 2 * (missing - speed * PREVIEW_S) / PREVIEW_S**2
        return float(np.clip(max(accel, standing), -self.max_brake, self.max_accel))


class _Path:
    """The way of a plan, straight on beyond both ends, and how far along it each waypoint is."""

    def __init__(self, points: NDArray[np.float64], heading: float) -> None:
        ahead = np.array([np.cos(heading), np.sin(heading)])
        kept = [points[0]]
        for point in points[1:]:
            step = point - kept[-1]
            length = np.hypot(*step)
            if length > SEPARATE and step @ ahead > SHARPEST * length:
                kept.append(point)
                ahead = step / length
        self.line = _rounded(np.array(kept), heading)
        steps = np.diff(self.line, axis=0)
        self.lengths = np.hypot(*steps.T)
        self.along = steps / self.lengths[:, None]
        self.start = np.append(0.0, np.cumsum(self.lengths))
        self.first, self.last = np.zeros(len(steps)), self.lengths.copy()
        self.first[0], self.last[-1] = -np.inf, np.inf
        self.stations = np.maximum.accumulate(self.project(points))

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far along the path points (N, 2) are: (N,) m, negative before its start."""
        relative = points[:, None] - self.line[:-1]
        forward = (relative * self.along).sum(-1)
        inside = np.clip(forward, self.first, self.last)
        off = relative - inside[..., None] * self.along
        nearest = (off * off).sum(-1).argmin(-1)
        stations: NDArray[np.float64] = self.start[nearest] + inside[range(len(points)), nearest]
        return stations

    def at(self, station: float) -> NDArray[np.float64]:
        """The point (2,) that far along."""
        piece = int(np.searchsorted(self.start[1:-1], station, side="right"))
        point: NDArray[np.float64] = self.line[piece] + self.along[piece] * (
            station - self.start[piece]
        )
        return point


def _rounded(points: NDArray[np.float64], heading: float) -> NDArray[np.float64]:
    """A line (N, 2), N >= 2, through all points (M, 2) without corners: cubic between each two,
    after Catmull and Rom; from a single one straight on."""
    if len(points) == 1:
        return np.array([points[0], points[0] + [np.cos(heading), np.sin(heading)]])
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    slopes = steps / lengths[:, None]
    # Of the parabola through three points; at both ends what it gives there.
    weight = (lengths[1:] / (lengths[1:] + lengths[:-1]))[:, None]
    inner = slopes[:-1] * weight + slopes[1:] * (1 - weight)
    ends = 2 * slopes[[0, -1]] - inner[[0, -1]] if len(inner) else slopes[[0, 0]]
    tangents = np.vstack([ends[:1], inner, ends[1:]])
    pieces = []
    for k, length in enumerate(lengths):
        u = np.linspace(0, 1, int(min(max(2, length), FINEST)), endpoint=False)[:, None]
        pieces.append(
            points[k] * (1 + 2 * u) * (1 - u) ** 2
            + points[k + 1] * u**2 * (3 - 2 * u)
            + length * (tangents[k] * u * (1 - u) ** 2 - tangents[k + 1] * u**2 * (1 - u))
        )
    return np.vstack([*pieces, points[-1:]])


def _where(
    stations: NDArray[np.float64], due: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Stations at `times`: a smooth monotone curve, going on at its last speed."""
    if len(due) == 1:
        return np.repeat(stations, len(times))
    last_speed = (stations[-1] - stations[-2]) / (due[-1] - due[-2])
    within = PchipInterpolator(due, stations)(np.clip(times, due[0], due[-1]))
    reached: NDArray[np.float64] = within + last_speed * np.maximum(times - due[-1], 0)
    return reached


def _check(points: NDArray[np.float64], due: NDArray[np.float64]) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or due.shape != points.shape[:1] or not len(due):
        raise ValueError(
            f"a plan is (T, 2) waypoints and (T,) times with T of 1 or more, got {points.shape} "
            f"and {due.shape}"
        )
    if not (np.isfinite(points).all() and np.isfinite(due).all() and (np.diff(due) > 0).all()):
        raise ValueError("the waypoints and times of a plan must be finite, and the times rise")
