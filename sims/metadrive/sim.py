"""What MetaDrive's two simulators have in common: actions, moments, observations, the end."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim
from fastloop.sims.driving.birds_eye import birds_eye
from fastloop.sims.driving.camera import front_views
from fastloop.sims.driving.ground import Ground
from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.painter import paint
from fastloop.sims.driving.pdm import carried_on
from fastloop.sims.driving.poses import Pose
from fastloop.sims.driving.route import Route
from fastloop.sims.driving.scene import Body, Drive, Moment, Surroundings
from fastloop.sims.driving.score import ARRIVAL_M, score
from fastloop.sims.metadrive.engine import Engine
from fastloop.sims.metadrive.expert_view import VIEW, VIEW_SPEC, expert_view
from fastloop.sims.metadrive.plan_scores import Future, PlanScores
from fastloop.sims.metadrive.vehicle import REAR_AXLE, TICK_S, Driver

__all__ = ["MetaDriveSim"]

CRASHES = ("vehicle", "human", "object")
FAR_OFF_M = 10.0  # from the route
ARRIVAL = 0.95
SUCCESS = (
    f"comes within {ARRIVAL_M:g} m of the end of its route, with no collision at fault and never "
    "off the road"
)
PICTURE = "observation.images."
NOWHERE = Surroundings((), {}, (), (), (), np.zeros((0, 2)))


class MetaDriveSim(Sim):
    """A drive in MetaDrive, at 10 Hz.

    Observations are those of `Observer`, and pictures where cameras are asked for. An episode ends
    where the vehicle arrives: 95 % of its route are done and the end is within 5 m; a tick after a
    crash with a vehicle or a person (the engine feels it 0.1 m before boxes touch, and scores shall
    see it); and more than 10 m from the route. Success is that of `DriveScore`.

    At the end ``info["figures"]`` are those of `DriveScore`, and of `PlanScores` where plans are
    scored. In every tick ``info`` has ``scene``,
    ``route_completion`` and, for ``vehicle``, ``human`` and ``object``, ``crash_<what>``: whether
    there was one since the start. The reward is the progress along the route, m.

    Args:
        name: of the environment.
        driver: does with the vehicle what actions say.
        max_steps: ticks after which an episode times out.
        end_on_crash: else the drive goes on after it.
        cameras: which of `front_views` to give, as ``observation.images.<camera>``.
        image_size: of their pictures, width and height.
        score_plans: score every plan by itself, too.
        own_observation: also give ``observation.metadrive``, see `expert_view`.

    Raises:
        ValueError: for another camera; for plans to be scored where actions are no plans.
    """

    def __init__(
        self,
        name: str,
        driver: Driver,
        *,
        max_steps: int,
        end_on_crash: bool,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        score_plans: bool,
        own_observation: bool = False,
    ) -> None:
        if score_plans and driver.control != "plan":
            raise ValueError(f"score_plans needs control=plan: {driver.control} makes no plans")
        width, height = image_size
        views = {f"{PICTURE}{camera.name}": camera for camera in front_views((width, height))}
        if unknown := [camera for camera in cameras if f"{PICTURE}{camera}" not in views]:
            known = ", ".join(key.removeprefix(PICTURE) for key in views)
            raise ValueError(f"there is no camera {unknown[0]!r}; have: {known}")
        self.cameras = {f"{PICTURE}{camera}": views[f"{PICTURE}{camera}"] for camera in cameras}
        picture = TensorSpec((3, height, width), "uint8", 0, 255)
        observations = {
            **Observer(NOWHERE, rear_axle=REAR_AXLE).specs(),
            **dict.fromkeys(self.cameras, picture),
            **({VIEW: VIEW_SPEC} if own_observation else {}),
        }
        super().__init__(
            EnvSpec(
                name=name,
                observations=observations,
                action=driver.spec,
                control_hz=1 / TICK_S,
                max_steps=max_steps,
                success=SUCCESS,
            )
        )
        self.driver = driver
        self.end_on_crash = end_on_crash
        self.score_plans = score_plans
        self.own_observation = own_observation
        self.surroundings = NOWHERE
        self.moments: list[Moment] = []
        self.recorded: NDArray[np.float64] | None = None
        self.crashed = dict.fromkeys(CRASHES, False)
        self._origin = np.zeros(2)

    engine: Engine

    @abc.abstractmethod
    def _begin(self, seed: int) -> str:
        """Begin an episode; sets `surroundings`, `recorded` and `_origin`, and names the scene."""

    @abc.abstractmethod
    def _others(self) -> Mapping[str, Body]:
        """Who else is there, in the scene's frame."""

    def drive(self) -> Drive:
        """The drive up to now."""
        return Drive(self.surroundings, tuple(self.moments), self.recorded)

    def close(self) -> None:
        """Let MetaDrive's engine go."""
        self.engine.close()
        super().close()

    def _reset(self, seed: int) -> Observation:
        self.scene_name = self._begin(seed)
        self.crashed = dict.fromkeys(CRASHES, False)
        self._ground = Ground(self.surroundings)
        self._way = Route(self.surroundings.route)
        self._plans: PlanScores | None = None
        if self.score_plans:
            self._plans = PlanScores(self.surroundings, self.driver.spec, self._future)
        self.moments = []
        self._observer = Observer(self.surroundings, rear_axle=REAR_AXLE)
        observation = self._look()
        self.driver.reset(self.moments[0].ego)
        self._station = self._along()
        return observation

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        env = self.engine.env
        hit = self.crashed["vehicle"] or self.crashed["human"]
        if self._plans:
            self._plans.follow(action, self.moments)
        self.driver.act(env, action, self.moments[-1].ego)
        observation = self._look()
        self.driver.moved(self.moments[-1].ego)
        for what in CRASHES:
            self.crashed[what] |= bool(getattr(env.agent, f"crash_{what}"))
        station, ego, route = self._along(), self.moments[-1].ego, self.surroundings.route
        arrived = (
            station > ARRIVAL * self._way.length
            and math.hypot(route[-1, 0] - ego.x, route[-1, 1] - ego.y) < ARRIVAL_M
        )
        off_m = np.hypot(*(route - [ego.x, ego.y]).T).min()
        ended = bool(arrived or off_m > FAR_OFF_M or (hit and self.end_on_crash))
        info: dict[str, Any] = {
            "is_success": False,
            "scene": self.scene_name,
            "route_completion": station / self._way.length,
            **{f"crash_{what}": crashed for what, crashed in self.crashed.items()},
        }
        if ended or len(self.moments) > self.env_spec.max_steps:
            figures = score(self.drive()).figures() | (self._plans.figures() if self._plans else {})
            info |= {"figures": figures, "is_success": bool(figures["success"])}
        reward, self._station = station - self._station, station
        return observation, reward, ended, info

    def _along(self) -> float:
        """How far along the route the vehicle is, m."""
        ego = self.moments[-1].ego
        return self._way.station(Pose(ego.x, ego.y, ego.heading))

    def _look(self) -> Observation:
        agent = self.engine.env.agent
        size = agent.LENGTH, agent.WIDTH, agent.HEIGHT
        ego = self._body(Body("vehicle", 0, 0, 0, 0, 0, *size), agent)
        moment = Moment(round(len(self.moments) * TICK_S, 6), ego, self._others())
        self.moments.append(moment)
        observation = self._observer.see(moment)
        for key, camera in self.cameras.items():
            observation[key] = paint(camera, self._ground, moment, rear_axle=REAR_AXLE)
        if self.own_observation:
            observation[VIEW] = expert_view(self.engine.env)
        return observation

    def _future(self, tick: int, steps: int) -> Future | None:
        """The next `steps` ticks after one, as far as known then: all keep their velocities."""
        return Future(carried_on(self.moments[tick], steps * TICK_S))

    def _body(self, like: Body, thing: Any) -> Body:
        """An object of MetaDrive in the scene's frame, of the kind and size of another body.

        Cones and barriers stand still: what MetaDrive says of their velocities means nothing.
        """
        (x, y), (dx, dy) = thing.position, self._origin
        vx, vy = (0.0, 0.0) if like.kind == "other" else thing.velocity
        heading = math.remainder(thing.heading_theta, math.tau)
        return Body(
            like.kind, x + float(dx), y + float(dy), heading, float(vx), float(vy), like.length,
            like.width, like.height,
        )  # fmt: skip

    def _render(self) -> NDArray[np.uint8]:
        trail = np.array([[moment.ego.x, moment.ego.y] for moment in self.moments])
        return birds_eye(self._ground, self.moments[-1], trail=trail)
