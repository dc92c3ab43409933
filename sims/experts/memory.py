"""Experts for the memory tasks: they know the stage that nothing in sight tells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.experts.robosuite import (
    DOWN,
    OPEN,
    SHUT,
    UP,
    WIDTH_OPEN,
    LiftExpert,
    hand_action,
)
from fastloop.sims.robosuite import DELTA_METERS
from fastloop.sims.robosuite_memory import PlaceOpposite, SquareTwice

__all__ = ["PlaceOppositeExpert", "SquareTwiceExpert"]

Array = NDArray[np.float64]
AT_M = 0.006  # a pose nearer than this is reached


class SquareTwiceExpert:
    """SquareTwice: over the peg, down, a moment's stay; up and the same again; then let go."""

    bottom = 0.885  # m: height to which the nut is lowered
    stay = 4  # ticks at the bottom, and over the peg

    def __init__(self) -> None:
        self._lowering, self._stayed = False, 0
        self._shove: Array | None = None

    def reset(self, sim: SquareTwice) -> None:
        """Begin with a lift to over the peg, whatever was under way."""
        self._lowering, self._stayed = False, 0
        self._shove = None

    def act(self, sim: SquareTwice) -> Array:
        """The action (7,) for the present state of `sim`, in its kind of actions."""
        at, _ = sim.hand
        nut, _ = sim.object
        goal = sim.SADDLE.copy()
        if self._lowering:
            goal[2] = self.bottom
        self._stayed += bool(np.linalg.norm(goal - nut) < AT_M)
        if self._stayed > self.stay:
            if sim.stage == 3:
                width = float(sim.fingers[0] - sim.fingers[1])
                return hand_action(sim, at + 0.05 * bool(width > 0.04) * UP, DOWN, OPEN)
            self._lowering, self._stayed = not self._lowering, 0
        return hand_action(sim, at + goal - nut, DOWN, SHUT)

    def nudge(self, sim: SquareTwice, rng: np.random.Generator) -> Array:
        """An action (7,) that shoves the hand aside, the nut in it; the same until `reset`."""
        if self._shove is None:
            self._shove = rng.uniform(-DELTA_METERS, DELTA_METERS, 3)
        at, facing = sim.hand
        return hand_action(sim, at + self._shove, facing, SHUT)


class PlaceOppositeExpert:
    """PlaceOpposite: grasp as in Lift, come to rest from below the resting point, stay for 8 to 16
    ticks, cross to the other side, set the cube down."""

    stays = (8, 17)  # ticks at rest, a half-open range
    lifted, travel, set_down = 0.845, 0.87, 0.815  # m: heights of the cube on its way

    def __init__(self) -> None:
        self._lift = LiftExpert()
        self._carrying = self._placed = False
        self._stay = 0

    def reset(self, sim: PlaceOpposite) -> None:
        """Begin with the grasp, whatever was under way."""
        self._lift.reset(sim)
        self._carrying = self._placed = False
        rng = np.random.default_rng(sim.seed)
        self._stay = 0 if sim.stage else int(rng.integers(*self.stays))

    def act(self, sim: PlaceOpposite) -> Array:
        """The action (7,) for the present state of `sim`, in its kind of actions."""
        at, _ = sim.hand
        cube, _ = sim.object
        if self._placed:
            width = float(sim.fingers[0] - sim.fingers[1])
            return hand_action(sim, at + 0.05 * bool(width > WIDTH_OPEN) * UP, DOWN, OPEN)
        held = bool(np.linalg.norm(cube - at) < 0.03)
        self._carrying = held and (self._carrying or cube[2] > self.lifted)
        if not self._carrying:
            return self._lift.act(sim)
        resting = self._stay > 0
        goal = (sim.REST if resting else sim.goal)[:2]
        aside = float(np.linalg.norm(goal - cube[:2]))
        if resting:
            height = self.travel + (sim.REST[2] - self.travel) * _ramp(aside, 0.02, 0.004)
            self._stay -= bool(np.linalg.norm(sim.REST - cube) < AT_M)
        else:
            height = sim.REST[2] + (self.set_down - sim.REST[2]) * _ramp(aside, 0.03, 0.01)
            self._placed = bool(cube[2] < sim.TABLE_M + 0.024)
        return hand_action(sim, at + [*(goal - cube[:2]), height - cube[2]], DOWN, SHUT)

    def nudge(self, sim: PlaceOpposite, rng: np.random.Generator) -> Array:
        """An action (7,) that shoves the hand as Lift's expert does; the same until `reset`."""
        return self._lift.nudge(sim, rng)


def _ramp(x: float, zero: float, one: float) -> float:
    return float(np.clip((x - zero) / (one - zero), 0.0, 1.0))
