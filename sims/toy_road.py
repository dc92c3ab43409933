"""A winding road without traffic: about a millisecond a tick, for planners of waypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.driving.whole_plans import plan_action
from fastloop.policies.spec import EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim
from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.birds_eye import birds_eye
from fastloop.sims.driving.camera import SMALL_SIZE, front_views
from fastloop.sims.driving.ground import Ground
from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.painter import paint
from fastloop.sims.driving.poses import Pose
from fastloop.sims.driving.route import Route
from fastloop.sims.driving.scene import Moment, Surroundings
from fastloop.sims.driving.tracker import Tracker, place

__all__ = ["ToyRoad"]

TICK_S = 0.1
REAR_AXLE = 1.3  # m behind the middle of the vehicle
LANE = 4.0  # m, to either side of the route
START_SPEED = 8.0  # m/s
BICYCLE = Bicycle()
TRACKER = Tracker(
    BICYCLE.wheelbase, BICYCLE.max_steer, BICYCLE.max_accel, BICYCLE.max_brake, TICK_S, REAR_AXLE
)


class ToyRoad(Sim):
    """Tries out what drives planners, without MetaDrive: a kinematic bicycle follows whole plans.

    The observations are those of `Observer`. An episode ends 4 m beside the route, and succeeds
    where 95 % of it are done. At the end ``info["figures"]`` are the share of the route that was
    done and the mean distance from it (m).

    Args:
        max_steps: ticks after which an episode times out.
        plan_steps, plan_hz: waypoints of a plan, and waypoints a second.
        cameras: which of `front_views` to give, as ``observation.images.<camera>``.
        image_size: of their pictures, width and height.

    Raises:
        ValueError: for another camera.
    """

    def __init__(
        self,
        *,
        max_steps: int = 100,
        plan_steps: int = 20,
        plan_hz: float = 4.0,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = SMALL_SIZE,
    ) -> None:
        width, height = image_size
        views = {view.name: view for view in front_views((width, height))}
        if unknown := [camera for camera in cameras if camera not in views]:
            raise ValueError(f"there is no camera {unknown[0]!r}; have: {', '.join(views)}")
        self.cameras = {f"observation.images.{camera}": views[camera] for camera in cameras}
        picture = TensorSpec((3, height, width), "uint8", 0, 255)
        super().__init__(
            EnvSpec(
                name="ToyRoad",
                observations={
                    **Observer(_road(0), rear_axle=REAR_AXLE).specs(),
                    **dict.fromkeys(self.cameras, picture),
                },
                action=plan_action(plan_steps, plan_hz),
                control_hz=1 / TICK_S,
                max_steps=max_steps,
                success="95% of the route are done",
            )
        )
        self.plan_hz = plan_hz

    def _reset(self, seed: int) -> Observation:
        self.road = _road(seed)
        self._ground = Ground.of(self.road)
        self._observer = Observer(self.road, rear_axle=REAR_AXLE)
        self._route = Route(self.road.route)
        (x0, y0), (x1, y1) = self.road.route[:2]
        self.states = [np.array([x0, y0, math.atan2(y1 - y0, x1 - x0), START_SPEED])]
        self._off_m = [0.0]
        return self._look()

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        age_s, state = float(action[0]), self.states[-1]
        ticks = min(round(age_s / TICK_S), len(self.states) - 1)
        then = Pose(*self.states[-1 - ticks][:3])
        plan, times = place(action[1:].reshape(-1, 2), then, hz=self.plan_hz, age_s=age_s)
        controls = TRACKER.control(plan, times, BICYCLE.body(state, rear_axle=REAR_AXLE))
        self.states.append(BICYCLE.step(state, controls, TICK_S))
        pose = Pose(*self.states[-1][:3])
        beside = self._route.ahead(pose, 1, 1.0)[0]
        self._off_m.append(math.hypot(beside[0] - pose.x, beside[1] - pose.y))
        done = self._route.station(pose) / self._route.length
        info = {
            "is_success": done > 0.95,
            "figures": {"route_completion": done, "off_route_m": float(np.mean(self._off_m))},
        }
        return self._look(), -self._off_m[-1], self._off_m[-1] > LANE, info

    def _look(self) -> Observation:
        moment = self._moment()
        pictures = {
            key: paint(camera, self._ground, moment, rear_axle=REAR_AXLE)
            for key, camera in self.cameras.items()
        }
        return self._observer.see(moment) | pictures

    def _moment(self) -> Moment:
        ego = BICYCLE.body(self.states[-1], rear_axle=REAR_AXLE)
        return Moment(round((len(self.states) - 1) * TICK_S, 6), ego, {})

    def _render(self) -> NDArray[np.uint8]:
        trail = np.array([state[:2] for state in self.states])
        return birds_eye(self.road, self._moment(), (160, 160), trail=trail)


def _road(seed: int) -> Surroundings:
    """80 m of bends, others for every seed."""
    phase, bend = np.random.default_rng(seed).uniform((0.0, 2.0), (math.tau, 5.0))
    x = np.linspace(0.0, 80.0, 161)
    route = np.stack([x, bend * np.sin(x / 12.0 + phase)], axis=-1)
    along = np.gradient(route, axis=0)
    aside = LANE * np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1)[:, None]
    road = np.concatenate([route + aside, (route - aside)[::-1]])
    return Surroundings((road,), {}, (), (), (), route)
