"""Two robosuite tasks in which one moment does not tell what to do next: the past decides.

They are built after the long-horizon tasks of Past-Token Prediction (Torne et al., 2025): Square
with two visits of the peg, and the cube that goes opposite to where it came from.
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.base import Observation
from fastloop.sims.robosuite import Robosuite

__all__ = ["PlaceOpposite", "SquareTwice", "Staged"]

LEFT_M = 0.05  # the hand has left what is further away from it than this


class Staged(Robosuite, abc.ABC):
    """A robosuite scene with a task in stages, none of which can be skipped or made up for.

    ``info["figures"]["stage"]`` is the stage reached. A mistake that spoils the task ends the
    episode, so that guessing again is no way to succeed. The reward is 1 at success.

    Args:
        task: robosuite's name of the scene.
        name, success: as in `EnvSpec`.
        ticks: after which an episode times out, where `max_steps` does not say.
        max_steps, options: as of `Robosuite`, whose observations and actions these are.

    Attributes:
        seed: the episode's.
        stage: how far it is, from 0; `stages` is success. Nothing observed tells it.
    """

    stages: int

    def __init__(
        self,
        task: str,
        name: str,
        success: str,
        ticks: int,
        *,
        max_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task, max_steps=max_steps or ticks, **options)
        self.env_spec = replace(self.env_spec, name=f"robosuite {name}", success=success)
        self.seed = self.stage = 0

    @abc.abstractmethod
    def _advance(self) -> bool:
        """Count the stage up where the scene says so; whether the task was spoiled."""

    def _reset(self, seed: int) -> Observation:
        self.seed, self.stage = seed, 0
        return super()._reset(seed)

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        observation, *_ = super()._step(action)
        spoiled = self._advance()
        success = self.stage == self.stages
        info = {"is_success": success, "figures": {"stage": float(self.stage)}}
        return observation, float(success), spoiled, info

    def _save(self) -> Any:
        return super()._save(), self.stage

    def _restore(self, state: Any) -> Observation:
        engine, self.stage = state
        return super()._restore(engine)

    def _set_pose(self, joint: str, position: NDArray[np.float64], rotation: Any) -> None:
        """Put a free body somewhere, at rest; `rotation` is (3, 3)."""
        mujoco = require("mujoco", extra="sim")
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation, dtype=np.float64).ravel())
        self.engine.sim.data.set_joint_qpos(joint, np.concatenate([position, quaternion]))
        self.engine.sim.data.set_joint_qvel(joint, np.zeros(6))
        self.engine.sim.forward()


class SquareTwice(Staged):
    """Lower the square nut onto the peg, lift it well above, lower it again, and let go.

    Stages: 1 first visit, 2 lifted in between, 3 second visit, 4 let go on the peg. Letting go
    earlier or elsewhere, and lifting the nut once more, spoil the task. Both visits look alike.

    An episode begins with the nut in the closed hand, near the pose above the peg that it is lifted
    to; how it is held and how the arm's joints stand is random. The peg stands nearer to the arm
    than in robosuite's scene, where it is at the end of the arm's reach.

    Args:
        options: as of `Robosuite`.
    """

    stages = 4
    SADDLE = np.array([0.10, 0.0, 1.02])  # of the nut, m: 6 cm above the peg
    ON_M = 0.90  # height of the nut below which it is a visit: 5 cm down the peg
    OFF_M = 1.00  # height above which the nut is lifted

    _ARM = (0.0, 0.50, 0.0, -2.01, 0.0, 2.51, 0.79)  # rad: the hand at the handle
    _HELD = np.array([0.061, 0.0, -0.002])  # m: where the hand is in the nut's frame
    _HELD_SPREAD = np.array([0.005, 0.0, 0.002])
    _NUT_IN_HAND = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])  # its rotation there

    def __init__(self, **options: Any) -> None:
        success = "the nut was on the peg twice, lifted in between, and then let go there"
        super().__init__("NutAssemblySquare", "SquareTwice", success, 160, **options)
        self.engine.sim.model._model.body_pos[self.engine.peg1_body_id][:2] = self.SADDLE[:2]

    @property
    def handle(self) -> NDArray[np.float64]:
        """(3,) position of the nut's handle, m."""
        model, data = self.engine.sim.model, self.engine.sim.data
        return np.array(data.site_xpos[model.site_name2id("SquareNut_handle_site")])

    def _advance(self) -> bool:
        nut, _ = self.object
        around = np.abs(nut - self.SADDLE)[:2].max() < 0.02
        on, off = bool(around and nut[2] < self.ON_M), bool(nut[2] > self.OFF_M)
        left = bool(np.linalg.norm(self.hand[0] - self.handle) > LEFT_M)
        if self.stage == 3:
            self.stage += left and on
            return off or (left and not on)
        self.stage += not left and (off if self.stage == 1 else on)
        return left

    def _arrange(self) -> None:
        rng, data = self.engine.rng, self.engine.sim.data
        robot = self.engine.robots[0]
        data.qpos[robot._ref_joint_pos_indexes] = self._ARM + rng.uniform(-0.03, 0.03, 7)
        data.qpos[robot._ref_gripper_joint_pos_indexes["right"]] = 0.017, -0.017
        self.engine.sim.forward()
        at, facing = self.hand
        rotation = facing @ self._NUT_IN_HAND
        held = self._HELD + self._HELD_SPREAD * rng.uniform(-1, 1, 3)
        self._set_pose(self.engine.nuts[0].joints[0], at - rotation @ held, rotation)
        self._close_hand()

    def _close_hand(self) -> None:
        """Shut the fingers on the nut, which floats meanwhile."""
        mujoco = require("mujoco", extra="sim")
        stay, quaternion = np.array([0, 0, 0, 0, 0, 0, 1.0]), np.empty(4)
        if self.env_spec.action.kind == "absolute_pose":
            stay[:3], facing = self.hand
            mujoco.mju_mat2Quat(quaternion, facing.ravel())
            mujoco.mju_quat2Vel(stay[3:6], quaternion, 1.0)
        gravity = self.engine.sim.model._model.opt.gravity
        weight = gravity.copy()
        gravity[:] = 0
        self._forget()
        for _ in range(4):
            self.engine.step(stay)
        gravity[:] = weight


class PlaceOpposite(Staged):
    """Lift the cube from one of four places, rest with it in the middle, set it down opposite.

    Stages: 1 rested, 2 set down on the place diagonally opposite to where it was. Where the cube
    first lies free after the rest decides: any other place spoils the task. At rest, all four
    beginnings look alike; a policy that has forgotten its own is right in one case of four.

    Args:
        options: as of `Robosuite`.

    Attributes:
        place: which of `PLACES` the cube lay on.
    """

    stages = 2
    PLACES = 0.1 * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])  # m, on the table
    REST = np.array([0.0, 0.0, 0.92])  # of the cube, m
    TABLE_M = 0.8  # height of the table
    REST_TICKS = 6  # ticks in a row that make a rest: who passes by is there for four
    NEAR_M = 0.02  # to the resting point, for a rest
    ON_M = 0.04  # to the middle of a place, for lying on it

    def __init__(self, **options: Any) -> None:
        success = "after a rest in the middle, the cube lies opposite to where it was"
        super().__init__("Lift", "PlaceOpposite", success, 200, **options)
        self.place = self._rested = 0

    @property
    def goal(self) -> NDArray[np.float64]:
        """(2,) the middle of the place where the cube belongs, m."""
        return np.array(self.PLACES[(self.place + 2) % 4])

    def _advance(self) -> bool:
        cube, _ = self.object
        if self.stage == 0:
            resting = np.linalg.norm(cube - self.REST) < self.NEAR_M
            self._rested = self._rested + 1 if resting else 0
            self.stage += self._rested == self.REST_TICKS
            return False
        left = bool(np.linalg.norm(cube - self.hand[0]) > LEFT_M)
        lies = left and bool(cube[2] < self.TABLE_M + 0.03)
        right = lies and bool(np.linalg.norm(cube[:2] - self.goal) < self.ON_M)
        self.stage += right
        return lies and not right

    def _arrange(self) -> None:
        rng = self.engine.rng
        self.place, self._rested = int(rng.integers(4)), 0
        at = self.PLACES[self.place] + rng.uniform(-0.012, 0.012, 2)
        height = self.TABLE_M + self.engine.cube.size[2] + 0.001
        turn = rng.uniform(-0.2, 0.2)
        cos, sin = np.cos(turn), np.sin(turn)
        rotation = [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
        self._set_pose(self.engine.cube.joints[0], np.array([*at, height]), rotation)

    def _save(self) -> Any:
        return super()._save(), self._rested

    def _restore(self, state: Any) -> Observation:
        staged, self._rested = state
        return super()._restore(staged)
