"""Experts for the memory tasks: they know the stage that nothing in sight tells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fastloop.sims.experts.robosuite import (
    DOWN,
    OPEN,
    SHUT,
    UP,
    WIDTH_OPEN,
    LiftExpert,
    hand_action,
)
from fastloop.sims.robosuite import DELTA_METERS, Robosuite
from fastloop.sims.robosuite_memory import PlaceOpposite, SquareTwice

__all__ = ["PlaceOppositeExpert", "SquareTwiceExpert"]

Array = NDArray[np.float64]
AT_M = 0.006  # a pose nearer than this is reached


class SquareTwiceExpert:
    """SquareTwice: over the peg, down, a moment's stay; up and the same again; then let go."""

    bottom = 0.885  # m: height to which the nut is lowered
    stay = 6  # ticks at the bottom, and over the peg

    def __init__(self) -> None:
        self._lowering, self._stayed = False, 0
        self._shove: Array | None = None
        self._rng = np.random.default_rng(0)
        self._sway = _Sway(self._rng, scale=0.4)

    def reset(self, sim: SquareTwice) -> None:
        """Begin with a lift to over the peg, whatever was under way."""
        self._shove = None
        self._rng = np.random.default_rng((sim.seed, sim.stage))
        self._begin(lowering=False)

    def act(self, sim: SquareTwice) -> Array:
        """The action (7,) for the present state of `sim`, in its kind of actions."""
        at, facing = sim.hand
        nut, _ = sim.object
        goal = sim.SADDLE + self._sway.off
        if self._lowering:
            goal[2] += self.bottom - sim.SADDLE[2]
        if np.linalg.norm(goal - nut) < AT_M:
            self._stayed += 1
            self._sway.drift()
        if self._stayed > self.stay:
            if sim.stage == 3:
                width = float(sim.fingers[0] - sim.fingers[1])
                return hand_action(sim, at + 0.05 * bool(width > 0.04) * UP, facing, OPEN)
            self._begin(lowering=not self._lowering)
        return hand_action(sim, at + goal - nut, self._sway.facing, SHUT)

    def _begin(self, lowering: bool) -> None:
        self._lowering, self._stayed = lowering, 0
        self._sway = _Sway(self._rng, scale=0.4)

    def nudge(self, sim: SquareTwice, rng: np.random.Generator) -> Array:
        """An action (7,) that shoves the hand aside, the nut in it; the same until `reset`."""
        if self._shove is None:
            self._shove = rng.uniform(-DELTA_METERS, DELTA_METERS, 3)
        at, facing = sim.hand
        return hand_action(sim, at + self._shove, facing, SHUT)


class PlaceOppositeExpert:
    """PlaceOpposite: grasp as in Lift, come to rest from below the resting point, stay for 8 to 16
    ticks, cross to the other side, set the cube down.

    Where its fingers take the cube, and how, is random too: see `_Sway`.
    """

    stays = (8, 17)  # ticks at rest, a half-open range
    lifted, travel, set_down = 0.845, 0.87, 0.815  # m: heights of the cube on its way

    def __init__(self) -> None:
        self._grasp = _CubeGrasp()
        self._carrying = self._placed = False
        self._stay = 0
        self._sway = _Sway(np.random.default_rng(0))

    def reset(self, sim: PlaceOpposite) -> None:
        """Begin with the grasp, whatever was under way."""
        self._grasp.reset(sim)
        self._carrying = self._placed = False
        rng = np.random.default_rng(sim.seed)
        self._stay = 0 if sim.stage else int(rng.integers(*self.stays))
        self._grasp.off = rng.uniform(-1, 1, 3) * (0.010, 0.003, 0.005)
        self._grasp.facing = _tilted(rng.uniform(-0.04, 0.04, 3))
        self._sway = _Sway(rng)

    def act(self, sim: PlaceOpposite) -> Array:
        """The action (7,) for the present state of `sim`, in its kind of actions."""
        at, facing = sim.hand
        cube, _ = sim.object
        if self._placed:
            width = float(sim.fingers[0] - sim.fingers[1])
            return hand_action(sim, at + 0.05 * bool(width > WIDTH_OPEN) * UP, facing, OPEN)
        held = bool(np.linalg.norm(cube - at) < 0.03)
        self._carrying = held and (self._carrying or cube[2] > self.lifted)
        if not self._carrying:
            return self._grasp.act(sim)
        rest = sim.REST + self._sway.off
        if self._stay:
            goal, low, high, fine = rest[:2], self.travel, rest[2], (0.02, 0.004)
            if np.linalg.norm(rest - cube) < AT_M:
                self._stay -= 1
                self._sway.drift()
        else:
            goal, low, high, fine = sim.goal, rest[2], self.set_down, (0.03, 0.01)
            self._placed = bool(cube[2] < sim.TABLE_M + 0.024)
        aside = float(np.linalg.norm(goal - cube[:2]))
        height = low + (high - low) * _ramp(aside, *fine)
        return hand_action(sim, at + np.array([*goal, height]) - cube, self._sway.facing, SHUT)

    def nudge(self, sim: PlaceOpposite, rng: np.random.Generator) -> Array:
        """An action (7,) that shoves the hand as Lift's expert does; the same until `reset`."""
        return self._grasp.nudge(sim, rng)


class _Sway:
    """How a resting hand differs from where it should be, and moves.

    Friction stops a hand a millimeter or a thousandth of a radian short of its goal, on the side
    that it came from, and a sharp eye would read the past from that. This is more, and random.
    """

    def __init__(self, rng: np.random.Generator, scale: float = 1.0) -> None:
        most = scale * np.repeat([0.006, 0.03], 3)  # m, rad
        self._pose = rng.uniform(-most, most)
        self._speed = rng.uniform(-most, most) / 9  # a tick

    @property
    def off(self) -> Array:
        """(3,) off the goal, m."""
        return self._pose[:3]

    @property
    def facing(self) -> Array:
        """(3, 3) nearly straight down."""
        return _tilted(self._pose[3:])

    def drift(self) -> None:
        """One tick at rest."""
        self._pose = self._pose + self._speed


class _CubeGrasp(LiftExpert):
    """Lift's, which takes its time, and need not hold the cube at its middle."""

    reach = 0.007

    def __init__(self) -> None:
        super().__init__()
        self.off, self.facing = np.zeros(3), DOWN

    def grasp(self, sim: Robosuite) -> tuple[Array, Array]:
        return sim.object[0] + self.off, self.facing

    def carry(self, sim: Robosuite, off: Array, held: float) -> Array:
        goal = sim.hand[0] + (1 - held) * off + 0.05 * held * UP
        return hand_action(sim, goal, self.facing, SHUT)


def _tilted(turn: Array) -> Array:
    """Nearly straight down: `DOWN` (3, 3), turned by a rotation vector (3,)."""
    rotation: Array = Rotation.from_rotvec(turn).as_matrix() @ DOWN
    return rotation


def _ramp(x: float, zero: float, one: float) -> float:
    return float(np.clip((x - zero) / (one - zero), 0.0, 1.0))
