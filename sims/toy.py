"""A point mass that must reach a goal: microseconds a step, with faults on demand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim

__all__ = ["PointMass", "PointMassExpert"]

Fault = Literal["raise", "segfault", "exit", "hang"]
DT = 0.1
GOAL_RADIUS = 0.1
WALL = 1.5


class PointMass(Sim):
    """Tries out what drives simulators; the action is an acceleration, leaving the arena a failure.

    Args:
        max_steps: ticks after which an episode times out.
        step_s: seconds of computing that each step pretends to need.
        faults: seed to what goes wrong in the third step of its episode.
        render_size: side of what `render` returns, pixels.
    """

    def __init__(
        self,
        *,
        max_steps: int = 60,
        step_s: float = 0.0,
        faults: Mapping[int, Fault] | None = None,
        render_size: int = 64,
    ) -> None:
        names = ("x", "y")
        super().__init__(
            EnvSpec(
                name="PointMass",
                observations={
                    "observation.state": TensorSpec((4,), names=("x", "y", "vx", "vy")),
                    "observation.environment_state": TensorSpec((2,), names=names),
                },
                action=ActionSpec(2, "acceleration", (-1.0, -1.0), (1.0, 1.0), names=names),
                control_hz=1 / DT,
                max_steps=max_steps,
                success="the point is within 0.1 m of the goal",
            )
        )
        self.step_s = step_s
        self.faults = dict(faults or {})
        self.render_size = render_size
        self.seed = 0
        self.ticks = 0
        self.body = np.zeros(4)
        self.goal = np.zeros(2)

    def _reset(self, seed: int) -> Observation:
        self.seed, self.ticks = seed, 0
        places = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
        self.body = np.concatenate([places[0], np.zeros(2)])
        self.goal = places[1]
        return self._observe()

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        self.ticks += 1
        if self.ticks == 3 and self.seed in self.faults:
            _break(self.faults[self.seed])
        end = time.perf_counter() + self.step_s
        self.body[2:] += DT * action
        self.body[:2] += DT * self.body[2:]
        distance = float(np.linalg.norm(self.body[:2] - self.goal))
        while time.perf_counter() < end:
            pass
        outside = bool(np.abs(self.body[:2]).max() > WALL)
        info = {"is_success": distance < GOAL_RADIUS, "figures": {"distance_m": distance}}
        return self._observe(), -distance, outside, info

    def _observe(self) -> Observation:
        return {
            "observation.state": self.body.astype(np.float32),
            "observation.environment_state": self.goal.astype(np.float32),
        }

    def _save(self) -> Any:
        return self.seed, self.ticks, self.body.tolist(), self.goal.tolist()

    def _restore(self, state: Any) -> Observation:
        self.seed, self.ticks, body, goal = state
        self.body, self.goal = np.array(body), np.array(goal)
        return self._observe()

    def _render(self) -> NDArray[np.uint8]:
        image = np.full((self.render_size, self.render_size, 3), 255, np.uint8)
        for place, color in ((self.goal, (0, 160, 0)), (self.body[:2], (200, 0, 0))):
            x, y = np.clip((place / WALL + 1) / 2 * (self.render_size - 1), 2, self.render_size - 3)
            image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = color
        return image


class PointMassExpert:
    """A damped spring between the point and its goal."""

    def reset(self, sim: PointMass) -> None:
        """There is nothing to forget."""

    def act(self, sim: PointMass) -> NDArray[np.float64]:
        """The acceleration (2,) of this tick."""
        pull = 1.5 * (sim.goal - sim.body[:2]) - 1.5 * sim.body[2:]
        return np.clip(pull, -1, 1)

    def nudge(self, sim: PointMass, rng: np.random.Generator) -> NDArray[np.float64]:
        """Any acceleration (2,)."""
        return rng.uniform(-1, 1, 2)


def _break(fault: Fault) -> None:
    if fault == "raise":
        raise RuntimeError("the solver diverged")
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "exit":
        os._exit(3)
    while fault == "hang":
        time.sleep(1)
