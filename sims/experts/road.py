"""A careful driver for made-up roads, which keeps clear of every way that others may take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.driving.idm import IDM
from fastloop.policies.driving.whole_plans import plan_rate, waypoint_env
from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.poses import rear_axle_pose, to_vehicle, to_world
from fastloop.sims.metadrive.map import MetaDriveMap
from fastloop.sims.metadrive.vehicle import REAR_AXLE

__all__ = ["RoadExpert"]

SPEEDS = (13.9, 10.0, 7.0, 4.5, 2.5)  # m/s, at most
BRAKES = (2.0, 4.0, 7.0)  # m/s^2
CRUISE, PICK_UP = 8.4, 1.0  # m/s and m/s^2 of MetaDrive's traffic
MARGIN_M, MARGIN_GROWTH = 0.3, 0.15  # of distances, now and a second later
LEAD_S = 0.4  # of its own way ahead, which it keeps free
CIRCLES = 4  # that cover a box


class RoadExpert:
    """The Intelligent Driver Model along the route, as fast as keeps clear of all the others.

    It takes the highest of several speeds at which it touches nobody within the plan's horizon, or
    else the speed or the braking at which that comes last. Everybody may go any way that lanes lead
    from where they are (`MetaDriveMap.possible_ways`), at the present speed or picking up speed.
    Whoever comes from behind keeps away by itself.

    Args:
        replan: ticks that a plan is followed.
        shift: m to the side, and `hurry` share of the speed, by which a disturbance errs at most.
    """

    def __init__(self, *, replan: int = 5, shift: float = 1.5, hurry: float = 0.4) -> None:
        self.replan = replan
        self.shift, self.hurry = shift, hurry
        self._age = 0
        self._plan: NDArray[np.float64] | None = None
        self._error: tuple[float, float] | None = None

    def reset(self, sim: MetaDriveMap) -> None:
        """Forget what was under way."""
        steps, hz = plan_rate(sim.env_spec.action)
        env = waypoint_env(sim.env_spec)
        self._drivers = [IDM(env, desired_speed=speed) for speed in SPEEDS]
        self._times = (1 + np.arange(steps)) / hz
        self._observer = Observer(sim.surroundings, rear_axle=REAR_AXLE)
        self._plan = self._error = None

    def act(self, sim: MetaDriveMap) -> NDArray[np.float64]:
        """The plan of this tick or of a few ticks ago, and its age."""
        if self._plan is None or self._age == self.replan:
            self._plan, self._age = self._decide(sim), 0
        action = np.concatenate([[self._age / sim.env_spec.control_hz], self._plan.ravel()])
        self._age += 1
        return action

    def nudge(self, sim: MetaDriveMap, rng: np.random.Generator) -> NDArray[np.float64]:
        """A plan that drifts to one side and is too fast or too slow, the same for a burst."""
        if self._error is None:
            side, pace = rng.uniform(-1, 1, 2)
            self._error = (side * self.shift, 1 + pace * self.hurry)
            self._plan = None
        side, pace = self._error
        plan = self.act(sim)
        points = plan[1:].reshape(-1, 2).copy()
        points *= pace
        points[:, 1] += side * np.minimum(self._times, 1.0)
        return np.concatenate([plan[:1], points.ravel()])

    def _decide(self, sim: MetaDriveMap) -> NDArray[np.float64]:
        """Waypoints (T, 2)."""
        seen = self._observer.see(sim.moments[-1])
        states, route, others = (
            np.asarray(seen[f"observation.{name}"], np.float64)
            for name in ("ego_states", "route", "neighbors")
        )
        ghosts = self._ghosts(sim)
        plans, touched = [], []
        for driver in self._drivers:
            plans.append(driver.waypoints(states, route, others))
            touched.append(self._touched(sim, plans[-1], ghosts))
            if touched[-1] == len(self._times):
                return plans[-1]
        way = np.vstack([[0.0, 0.0], plans[0]])
        speed = max(0.0, float(states[-1, 2]))
        plans += [_braked(way, speed, brake, self._times) for brake in BRAKES]
        touched += [self._touched(sim, plan, ghosts) for plan in plans[len(touched) :]]
        return plans[int(np.argmax(touched))]

    def _touched(
        self, sim: MetaDriveMap, plan: NDArray[np.float64], ghosts: NDArray[np.float64]
    ) -> int:
        """Which waypoint of a plan (T, 2) is the first at which it touches somebody; T: none."""
        ego = sim.moments[-1].ego
        pose = rear_axle_pose(ego, REAR_AXLE)
        places = to_world(plan, pose)
        steps = np.diff(places, axis=0, prepend=[[pose.x, pose.y]])
        moved = np.hypot(*steps.T)
        heading = np.where(moved > 0.05, np.arctan2(steps[:, 1], steps[:, 0]), pose.heading)
        pace = moved * len(self._times) / self._times[-1]
        front = ego.length / 2 + REAR_AXLE + LEAD_S * pace
        middle_x, middle_y = places.T
        ours = _circles(middle_x, middle_y, heading, back=ego.length / 2 - REAR_AXLE, front=front)
        x, y, turned, length, width = ghosts.transpose(2, 1, 0)  # each (T, N)
        theirs = _circles(x, y, turned, back=length / 2, front=length / 2)
        offsets = ours[:, None, :, None] - theirs[:, :, None]  # (T, N, C, C, 2)
        apart = np.hypot(offsets[..., 0], offsets[..., 1]).min((-2, -1), initial=np.inf)
        margin = MARGIN_M + MARGIN_GROWTH * self._times[:, None]
        near = (apart < (ego.width + width) / 2 + margin).any(1)
        return int(near.argmax()) if near.any() else len(near)

    def _ghosts(self, sim: MetaDriveMap) -> NDArray[np.float64]:
        """Where others may be: (N, T, 5) of x, y, heading, length and width."""
        possible = sim.possible_ways()
        pose, ego = rear_axle_pose(sim.moments[-1].ego, REAR_AXLE), sim.moments[-1].ego
        ghosts = []
        for key, body in sim.moments[-1].others.items():
            here = to_vehicle(np.array([body.x, body.y]), pose)
            follows = (
                abs(here[1]) < 2.0 and here[0] < 0 and np.cos(body.heading - ego.heading) > 0.5
            )
            if follows or np.hypot(*here) > 80:
                continue
            size = np.tile([body.length, body.width], (len(self._times), 1))
            ways = possible.get(key)
            if ways is None:
                points = [body.x, body.y] + self._times[:, None] * [body.vx, body.vy]
                heading = np.full(len(points), body.heading)
                ghosts.append(np.column_stack([points, heading, size]))
                continue
            steady = body.speed * self._times
            picked_up = np.minimum(PICK_UP * self._times, max(CRUISE - body.speed, 0.0))
            quicker = steady + np.cumsum(picked_up) * (self._times[1] - self._times[0])
            ghosts += [
                np.column_stack([_along(way, at), size]) for way in ways for at in (steady, quicker)
            ]
        return np.array(ghosts).reshape(-1, len(self._times), 5)


def _braked(
    way: NDArray[np.float64], speed: float, brake: float, times: NDArray[np.float64]
) -> NDArray[np.float64]:
    until = np.minimum(times, speed / brake)
    return _along(way, speed * until - brake * until**2 / 2)[:, :2]


def _along(way: NDArray[np.float64], stations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 3) x, y and heading on a way (N, 2), straight on beyond its end."""
    steps = np.diff(way, axis=0)
    lengths = np.hypot(*steps.T)
    kept = lengths > 1e-6
    points = np.vstack([way[:1], way[1:][kept] if kept.any() else way[:1] + 1e-3])
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    start = np.append(0.0, np.cumsum(lengths))
    piece = np.clip(np.searchsorted(start, stations, side="right") - 1, 0, len(steps) - 1)
    unit = steps[piece] / lengths[piece, None]
    places = points[piece] + (stations - start[piece])[:, None] * unit
    return np.column_stack([places, np.arctan2(unit[:, 1], unit[:, 0])])


def _circles(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    heading: NDArray[np.float64],
    *,
    back: Any,
    front: Any,
) -> NDArray[np.float64]:
    """Middles (..., C, 2) of circles along a box, from `back` m behind a point to `front` ahead."""
    share = (np.arange(CIRCLES) + 0.5) / CIRCLES
    along = -np.asarray(back)[..., None] + share * np.asarray(back + front)[..., None]
    return np.stack(
        [
            x[..., None] + along * np.cos(heading)[..., None],
            y[..., None] + along * np.sin(heading)[..., None],
        ],
        -1,
    )
