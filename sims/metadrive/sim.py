"""What MetaDrive's two simulators have in common: actions, moments, observations, the end."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import EnvSpec
from fastloop.sims.base import Observation, Sim
from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.scene import Body, Drive, Moment, Surroundings
from fastloop.sims.driving.score import score
from fastloop.sims.metadrive.engine import Engine
from fastloop.sims.metadrive.vehicle import REAR_AXLE, TICK_S, Driver

__all__ = ["NOWHERE", "MetaDriveSim"]

CRASHES = ("vehicle", "human", "object")
FAR_OFF_M = 10.0  # from the route
NOWHERE = Surroundings((), {}, (), (), (), np.zeros((0, 2)))


class MetaDriveSim(Sim):
    """A drive in MetaDrive, at 10 Hz.

    Observations are those of `Observer`. An episode ends with success where the vehicle arrives at
    the end of its route without having hit anybody or anything, and without it after a crash with
    a vehicle or a person, on arriving after one, and more than 10 m from the route. At its end
    ``info["figures"]`` are those of `DriveScore`; ``info`` says in every tick ``scene``,
    ``route_completion`` and, for ``vehicle``, ``human`` and ``object``, ``crash_<what>``: whether
    there was one since the start. The reward is the progress along the route, m.

    Args:
        env_spec: without observations; its actions are the driver's.
        driver: does with the vehicle what actions say.
        end_on_crash: else the drive goes on after it, and cannot succeed any more.
    """

    def __init__(self, env_spec: EnvSpec, driver: Driver, *, end_on_crash: bool) -> None:
        super().__init__(env_spec)
        self.driver = driver
        self.end_on_crash = end_on_crash
        self.surroundings = NOWHERE
        self.moments: list[Moment] = []
        self.recorded: NDArray[np.float64] | None = None
        self.crashed = dict.fromkeys(CRASHES, False)
        self._origin = np.zeros(2)
        self._completion = 0.0
        self._length = 0.0

    engine: Engine

    @abc.abstractmethod
    def _begin(self, seed: int) -> str:
        """Begin an episode; sets `surroundings`, `recorded` and `_origin`, and names the scene."""

    @abc.abstractmethod
    def _others(self) -> Mapping[str, Body]:
        """Who else is there, in the scene's frame."""

    @abc.abstractmethod
    def _route(self) -> tuple[float, float, bool]:
        """Share of the route that is done, m from it, and whether the vehicle arrived."""

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
        route = np.diff(self.surroundings.route, axis=0)
        self._length = float(np.hypot(*route.T).sum())
        self._completion = self._route()[0]
        self.moments = []
        self._observer = Observer(self.surroundings, rear_axle=REAR_AXLE)
        observation = self._look()
        self.driver.reset(self.moments[0].ego)
        return observation

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        env = self.engine.env
        self.driver.act(env, action, self.moments[-1].ego, self._origin)
        observation = self._look()
        self.driver.moved(self.moments[-1].ego)
        for what in CRASHES:
            self.crashed[what] |= bool(getattr(env.agent, f"crash_{what}"))
        completion, off_m, arrived = self._route()
        hit = self.crashed["vehicle"] or self.crashed["human"]
        ended = arrived or abs(off_m) > FAR_OFF_M or (hit and self.end_on_crash)
        info: dict[str, Any] = {
            "is_success": arrived and not any(self.crashed.values()),
            "scene": self.scene_name,
            "route_completion": completion,
            **{f"crash_{what}": crashed for what, crashed in self.crashed.items()},
        }
        if ended or len(self.moments) > self.env_spec.max_steps:
            info["figures"] = score(self.drive()).figures()
        reward = (completion - self._completion) * self._length
        self._completion = completion
        return observation, reward, ended, info

    def _look(self) -> Observation:
        agent = self.engine.env.agent
        ego = self._body("vehicle", agent, (agent.LENGTH, agent.WIDTH, agent.HEIGHT))
        moment = Moment(round(len(self.moments) * TICK_S, 6), ego, self._others())
        self.moments.append(moment)
        return self._observer.see(moment)

    def _body(self, kind: str, thing: Any, size: tuple[float, float, float]) -> Body:
        """An object of MetaDrive as a body in the scene's frame."""
        x, y = np.asarray(thing.position) + self._origin
        vx, vy = thing.velocity
        heading = math.remainder(thing.heading_theta, math.tau)
        return Body(kind, float(x), float(y), heading, float(vx), float(vy), *size)

    def _render(self) -> NDArray[np.uint8]:
        raise NotImplementedError
