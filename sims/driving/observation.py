"""What a driving policy is shown: the driving vocabulary, from the moments of a drive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import TensorSpec
from fastloop.sims.driving.poses import Pose, rear_axle_pose, to_vehicle
from fastloop.sims.driving.route import INTENTS, Route, resampled
from fastloop.sims.driving.scene import Body, Moment, Surroundings

__all__ = ["KINDS", "Observer", "Past"]

KINDS = ("vehicle", "pedestrian", "cyclist", "other")
STATES, STATE_S = 16, 0.25
NEIGHBOR = 10  # numbers of one
PIECE, PIECE_LENGTH, POINT = 20, 38.0, 6  # points and longest m of a polyline, numbers of a point
ROUTE_SPACING = 3.0  # m

Past = tuple[tuple[float, Pose, float], ...]
"""The last seconds of a vehicle: time (s), pose and speed ahead (m/s), oldest first."""


class Observer:
    """Observations of one drive, tick by tick.

    All but the intent is float32 in the vehicle's present frame: x forward, y left, origin at the
    rear axle; m, m/s, m/s^2.

    - ``observation.ego_states`` (16, 6): x, y, vx, vy, ax, ay of the rear axle at 4 Hz, oldest
      first, now last, interpolated between ticks; before the first moment the vehicle came
      straight at the speed that it had then. It moves as it points: the axle does not slip
      sideways. An acceleration is the change of velocity since 0.25 s before, a second. (In
      WOD-E2E a row holds the velocity of the row after, the last one twice, and for acceleration
      the change of velocity since the row before, not a second.)
    - ``observation.intent`` (): int64 index in `INTENTS`, see `Route.intent`.
    - ``observation.neighbors`` (M, 10): x and y of the box's middle, cosine and sine of the
      heading, vx, vy over ground, length, width, index in `KINDS`, 1; the nearest first, then rows
      of 0.
    - ``observation.map`` (P, 20, 6): x, y, cosine and sine of the direction, 1 for the route and 0
      for lanes, 1; pieces of center lines, at most 38 m long, the nearest first, then 0.
    - ``observation.route`` (R, 2): where the route goes from beside the vehicle on, every 3 m, its
      end repeated; 0 where there is none.

    Args:
        surroundings: where it drives.
        rear_axle: m from the middle of the vehicle's box back to its rear axle.
        neighbors, polylines, route_points: M, P and R.
        radius: m from the rear axle, beyond which neighbors are not seen.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        rear_axle: float,
        neighbors: int = 32,
        polylines: int = 64,
        route_points: int = 30,
        radius: float = 100.0,
    ) -> None:
        self.rear_axle = rear_axle
        self.neighbors = neighbors
        self.polylines = polylines
        self.route_points = route_points
        self.radius = radius
        self._route = Route(surroundings.route)
        lanes = [piece for lane in surroundings.lanes.values() for piece in _pieces(lane)]
        route = _pieces(surroundings.route)
        self._lines = np.array([*lanes, *route]).reshape(-1, PIECE, 2)
        self._coordinates = np.ascontiguousarray(self._lines.transpose(2, 1, 0))  # as searched
        self._directions = _directions(self._lines)
        self._on_route = np.arange(len(self._lines)) >= len(lanes)
        self._past: Past = ()

    def specs(self) -> Mapping[str, TensorSpec]:
        """What `see` gives, for an `EnvSpec`."""
        return {
            "observation.ego_states": TensorSpec((STATES, 6)),
            "observation.intent": TensorSpec((), "int64", low=0, high=len(INTENTS) - 1),
            "observation.neighbors": TensorSpec((self.neighbors, NEIGHBOR)),
            "observation.map": TensorSpec((self.polylines, PIECE, POINT)),
            "observation.route": TensorSpec((self.route_points, 2)),
        }

    def see(self, moment: Moment) -> dict[str, NDArray[Any]]:
        """The observations of the next moment of the drive; the first one begins it.

        Raises:
            ValueError: when it is not later than the last one.
        """
        if self._past and moment.time_s <= self._past[-1][0]:
            raise ValueError(
                f"a moment of {moment.time_s} s after one of {self._past[-1][0]} s: an Observer "
                "sees the moments of one drive in their order"
            )
        ego, pose = moment.ego, rear_axle_pose(moment.ego, self.rear_axle)
        speed = ego.vx * math.cos(ego.heading) + ego.vy * math.sin(ego.heading)
        recent = _since(self._past, moment.time_s - STATES * STATE_S)
        self._past = (*recent, (moment.time_s, pose, speed))
        route = self._route.ahead(pose, self.route_points, ROUTE_SPACING)
        return {
            "observation.ego_states": _ego_states(self._past),
            "observation.intent": np.array(self._route.intent(pose, speed), np.int64),
            "observation.neighbors": self._see_neighbors(moment.others.values(), pose),
            "observation.map": self._see_map(pose),
            "observation.route": to_vehicle(route, pose).astype(np.float32),
        }

    def save(self) -> Past:
        """What it remembers, for `restore`."""
        return self._past

    def restore(self, past: Past) -> None:
        """Go back to what `save` gave, also that of another observer of the same drive."""
        self._past = past

    def _see_neighbors(self, others: Iterable[Body], pose: Pose) -> NDArray[np.float32]:
        seen = np.zeros((self.neighbors, NEIGHBOR), np.float32)
        rows = [
            (b.x, b.y, b.heading, b.vx, b.vy, b.length, b.width, KINDS.index(b.kind))
            for b in others
        ]
        table = np.array(rows, np.float64).reshape(-1, 8)
        table[:, :2] = to_vehicle(table[:, :2], pose)
        table[:, 3:5] = to_vehicle(table[:, 3:5], Pose(0.0, 0.0, pose.heading))
        distances = np.hypot(table[:, 0], table[:, 1])
        order = np.argsort(distances, kind="stable")[: self.neighbors]
        nearest = table[order[distances[order] <= self.radius]]
        headings = nearest[:, 2] - pose.heading
        seen[: len(nearest), :2] = nearest[:, :2]
        seen[: len(nearest), 2] = np.cos(headings)
        seen[: len(nearest), 3] = np.sin(headings)
        seen[: len(nearest), 4:9] = nearest[:, 3:]
        seen[: len(nearest), 9] = 1
        return seen

    def _see_map(self, pose: Pose) -> NDArray[np.float32]:
        seen = np.zeros((self.polylines, PIECE, POINT), np.float32)
        x, y = self._coordinates
        distances = ((x - pose.x) ** 2 + (y - pose.y) ** 2).min(0)
        order = np.argsort(distances, kind="stable")[: self.polylines]
        seen[: len(order), :, :2] = to_vehicle(self._lines[order], pose)
        seen[: len(order), :, 2:4] = to_vehicle(
            self._directions[order], Pose(0.0, 0.0, pose.heading)
        )
        seen[: len(order), :, 4] = self._on_route[order, None]
        seen[: len(order), :, 5] = 1
        return seen


def _since(past: Past, start: float) -> Past:
    """The part of `past` from the last moment on that is not after `start`, or all of it."""
    before = sum(time <= start for time, _, _ in past)
    return past[max(0, before - 1) :]


def _ego_states(past: Past) -> NDArray[np.float32]:
    times = np.array([time for time, _, _ in past])
    poses = np.array([pose for _, pose, _ in past])
    when = times[-1] - STATE_S * np.arange(STATES, -1, -1)  # one more, for the first acceleration
    x, y, heading, speed = (
        np.interp(when, times, column)
        for column in (poses[:, 0], poses[:, 1], np.unwrap(poses[:, 2]), [s for _, _, s in past])
    )
    along = np.stack([np.cos(heading), np.sin(heading)], -1)
    velocity = speed[:, None] * along
    unseen = np.minimum(when - times[0], 0.0)[:, None]
    now = past[-1][1]
    straight = Pose(0.0, 0.0, now.heading)
    velocity_here = to_vehicle(velocity, straight)
    return np.hstack(
        [
            to_vehicle(np.stack([x, y], -1) + unseen * velocity, now)[1:],
            velocity_here[1:],
            np.diff(velocity_here, axis=0) / STATE_S,
        ]
    ).astype(np.float32)


def _pieces(line: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A line (N, 2) as pieces (PIECE, 2) of equal length; none of one without length."""
    length = float(np.hypot(*np.diff(line, axis=0).T).sum()) if len(line) > 1 else 0.0
    if not length:
        return []
    count = math.ceil(length / PIECE_LENGTH)
    points = resampled(line, count * (PIECE - 1) + 1)
    return [points[k * (PIECE - 1) :][:PIECE] for k in range(count)]


def _directions(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors (K, PIECE, 2) along lines, at their points."""
    steps = np.gradient(lines, axis=1)
    lengths = np.linalg.norm(steps, axis=-1, keepdims=True)
    directions: NDArray[np.float64] = steps / np.maximum(lengths, 1e-9)
    return directions
