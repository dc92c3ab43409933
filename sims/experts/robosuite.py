"""Experts for robosuite tasks: nearly a function of the state in sight, so that it can be cloned.

What to do next is read off the scene at every tick and blended, not switched by a script with
timers: the hand sinks as it gets above its object, rises as the gripper is felt to be shut, sinks
again above the goal. After a disturbance the same rules lead back.
"""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fastloop.sims.robosuite import DELTA_METERS, DELTA_RADIANS, Robosuite

__all__ = ["EXPERTS", "CanExpert", "LiftExpert", "SquareExpert", "hand_action"]

Array = NDArray[np.float64]
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # fingers close along x
UP = np.array([0.0, 0.0, 1.0])
OPEN, SHUT = -1.0, 1.0
LOWEST = 0.83  # m: a hand at this height does not press on the tables
WIDTH_OPEN = 0.07  # m between the fingers, of at most 0.08


def hand_action(sim: Robosuite, goal: Array, rotation: Array, grip: float) -> Array:
    """The action that moves the hand towards a pose, at most full scale of a delta action a tick.

    Args:
        sim: the environment, with absolute or delta actions.
        goal: (3,) position in the world, m.
        rotation: (3, 3) rotation in the world.
        grip: 1 closes, -1 opens.

    Returns:
        (7,) action of the environment's kind. A rotation vector is written with its first element
        positive: a hand that points down is half a turn away from the world, where the shortest
        vector would jump in sign.
    """
    at, facing = sim.hand
    step = _limited(goal - at, DELTA_METERS)
    turn = _limited(Rotation.from_matrix(rotation @ facing.T).as_rotvec(), DELTA_RADIANS)
    if sim.env_spec.action.kind == "delta_pose":
        return np.concatenate([step / DELTA_METERS, turn / DELTA_RADIANS, [grip]])
    vector = (Rotation.from_rotvec(turn) * Rotation.from_matrix(facing)).as_rotvec()
    if vector[0] + vector[1] < 0:
        vector *= 1 - 2 * np.pi / np.linalg.norm(vector)
    return np.concatenate([at + step, vector, [grip]])


class RobosuiteExpert(abc.ABC):
    """Picks the task's object up and brings it where it belongs, one action a tick."""

    grasp_height = 0.0  # of the hand above the object's origin, m
    reach = 0.015  # m: the object counts as between the fingers

    def __init__(self) -> None:
        self._shove: Array | None = None
        self._grip = OPEN

    def reset(self, sim: Robosuite) -> None:
        """Call after `sim.reset` and after a disturbance."""
        self._shove = None

    def act(self, sim: Robosuite) -> Array:
        """The action (7,) for the present state of `sim`, in its kind of actions."""
        at, _ = sim.hand
        grasp, facing = self.grasp(sim)
        off = grasp - at
        aside = float(np.linalg.norm(off[:2]))
        turned = _angle(facing, sim.hand[1])
        width = float(sim.fingers[0] - sim.fingers[1])
        if aside < self.reach and abs(off[2]) < self.reach and turned < 0.3:
            stopped = _ramp(sim.finger_speed, 0.03, 0.01) * _ramp(width, 0.064, 0.06)
            return self.carry(sim, off, stopped)
        above = 0.1 * max(_ramp(aside, 0.01, 0.04), _ramp(turned, 0.1, 0.3))
        if width < WIDTH_OPEN:
            above = max(above, 0.05)
        return hand_action(sim, grasp + above * UP, facing, OPEN)

    def nudge(self, sim: Robosuite, rng: np.random.Generator) -> Array:
        """An action (7,) that shoves the hand somewhere above the table, the fingers open or shut;
        the same shove until the next `reset`."""
        if self._shove is None:
            self._shove = rng.uniform(-DELTA_METERS, DELTA_METERS, 3)
            self._grip = OPEN if rng.uniform() < 0.5 else SHUT
        at, facing = sim.hand
        goal = at + self._shove
        goal[2] = max(goal[2], LOWEST)
        return hand_action(sim, goal, facing, self._grip)

    @abc.abstractmethod
    def grasp(self, sim: Robosuite) -> tuple[Array, Array]:
        """Position and rotation of the hand that holds the object where it is now."""

    @abc.abstractmethod
    def carry(self, sim: Robosuite, off: Array, held: float) -> Array:
        """The action with the object between the fingers.

        Args:
            sim: the environment.
            off: (3,) from the hand to where it should hold the object, m.
            held: 0 while the fingers move, 1 when they have stopped on the object.
        """


class LiftExpert(RobosuiteExpert):
    """Lift: grasp the cube as it lies, across its corners too, and raise it."""

    def grasp(self, sim: Robosuite) -> tuple[Array, Array]:
        return sim.object[0], DOWN

    def carry(self, sim: Robosuite, off: Array, held: float) -> Array:
        return hand_action(sim, sim.hand[0] + (1 - held) * off + 0.05 * held * UP, DOWN, SHUT)


class CanExpert(RobosuiteExpert):
    """PickPlaceCan: grasp the can from above, carry it over the wall, drop it into its bin."""

    def grasp(self, sim: Robosuite) -> tuple[Array, Array]:
        return sim.object[0] + 0.005 * UP, DOWN

    def carry(self, sim: Robosuite, off: Array, held: float) -> Array:
        at, _ = sim.hand
        left = (sim.engine.target_bin_placements[sim.engine.object_id] - sim.object[0])[:2]
        far = float(np.linalg.norm(left))
        height = 0.98 + 0.1 * _ramp(far, 0.04, 0.1)  # over the walls, lower over the goal
        across = left * _ramp(at[2], height - 0.1, height - 0.03)
        goal = at + (1 - held) * off + held * np.array([*across, height - at[2]])
        return hand_action(sim, goal, DOWN, OPEN if far < 0.04 else SHUT)


class SquareExpert(RobosuiteExpert):
    """NutAssemblySquare: grasp the nut by its handle, turn it square to the peg, lower it on."""

    reach = 0.02

    def act(self, sim: Robosuite) -> Array:
        at, facing = sim.hand
        nut, _ = sim.object
        peg = self._peg(sim)
        if np.abs(nut - peg)[:2].max() < 0.02 and nut[2] < peg[2] + 0.02:
            width = float(sim.fingers[0] - sim.fingers[1])
            return hand_action(sim, at + 0.05 * _ramp(width, 0.02, 0.04) * UP, facing, OPEN)
        return super().act(sim)

    def grasp(self, sim: Robosuite) -> tuple[Array, Array]:
        engine, (_, rotation) = sim.engine.sim, sim.object
        handle = engine.data.site_xpos[engine.model.site_name2id("SquareNut_handle_site")]
        across = np.arctan2(rotation[1, 1], rotation[0, 1])
        now = np.arctan2(sim.hand[1][1, 1], sim.hand[1][0, 1])
        # Both ways of laying the fingers across the handle are as good: the one that turns less.
        return handle - 0.002 * UP, _turned(now + (across - now) % np.pi - np.pi / 2)

    def carry(self, sim: Robosuite, off: Array, held: float) -> Array:
        at, facing = sim.hand
        nut, rotation = sim.object
        peg = self._peg(sim)
        turn = self._turn(sim, nut - at, rotation)
        across = peg[:2] - nut[:2]
        far = float(np.linalg.norm(across))
        fits = _ramp(far, 0.006, 0.004) * _ramp(abs(turn), 0.1, 0.04)
        if far < 0.01:
            fits = max(fits, _ramp(nut[2], 0.96, 0.95))  # on the peg already: it can only sink
        height = 1.0 + 0.03 * _ramp(far, 0.02, 0.06)
        sink = fits * -0.03 + (1 - fits) * np.clip(height - nut[2], -0.03, 0.03)
        ready = _ramp(nut[2], 0.93, 0.99) * _ramp(abs(turn), 1.0, 0.5)
        firm = 1 + _ramp(far, 0.03, 0.01)  # a stiffer pull against what friction leaves over
        over = ready * firm * _limited(across, 0.04)
        goal = at + (1 - held) * off + held * np.array([*over, sink])
        upright = Rotation.from_rotvec(
            [0, 0, held * np.clip(turn, -0.3, 0.3)]
        ).as_matrix() @ _straight(facing)
        return hand_action(sim, goal, upright, SHUT)

    def _turn(self, sim: Robosuite, held_at: Array, rotation: Array) -> float:
        """Yaw, rad, to the best of the four ways in which the nut fits the peg: a short one that
        neither puts the hand beyond the peg, out of reach, nor turns the wrist to its stop."""
        quarter = np.pi / 2
        yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
        nearest = float(quarter / 2 - (yaw + quarter / 2) % quarter)
        robot = sim.engine.robots[0]
        wrist = float(sim.engine.sim.data.qpos[robot._ref_joint_pos_indexes[6]])

        def cost(turn: float) -> float:
            beyond = np.sin(turn) * held_at[1] - np.cos(turn) * held_at[0] > 0.03
            return abs(turn) + 3 * bool(beyond) + 9 * bool(abs(wrist - turn) > 2.7)

        return min((nearest + k * quarter for k in range(-2, 3)), key=cost)

    @staticmethod
    def _peg(sim: Robosuite) -> Array:
        return np.array(sim.engine.sim.data.body_xpos[sim.engine.peg1_body_id])


EXPERTS = {"Lift": LiftExpert, "PickPlaceCan": CanExpert, "NutAssemblySquare": SquareExpert}


def _turned(yaw: float) -> Array:
    rotation: Array = Rotation.from_rotvec([0, 0, yaw]).as_matrix() @ DOWN
    return rotation


def _straight(facing: Array) -> Array:
    """The rotation nearest to `facing` that points straight down."""
    axis = np.cross(facing[:, 2], [0, 0, -1])
    tilt = np.arctan2(np.linalg.norm(axis), -facing[2, 2])
    if tilt < 1e-6:
        return facing
    upright: Array = Rotation.from_rotvec(axis / np.linalg.norm(axis) * tilt).as_matrix() @ facing
    return upright


def _angle(one: Array, other: Array) -> float:
    return float(Rotation.from_matrix(one @ other.T).magnitude())


def _limited(vector: Array, length: float) -> Array:
    return vector * min(1.0, length / (float(np.linalg.norm(vector)) + 1e-12))


def _ramp(x: float, zero: float, one: float) -> float:
    return float(np.clip((x - zero) / (one - zero), 0.0, 1.0))
