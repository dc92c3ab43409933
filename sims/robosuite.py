"""robosuite's Lift, PickPlaceCan and NutAssemblySquare with a Panda arm (Zhu et al., 2020)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim
from fastloop.sims.gl import choose_backend, require_gl

__all__ = ["TASKS", "Robosuite", "Task", "make"]


@dataclass(frozen=True)
class Task:
    """What a robosuite task is about.

    Attributes:
        object_body: the MuJoCo body that is to be moved.
        max_steps: ticks after which an episode times out.
        success: how robosuite judges it.
        sizes: half the least and the largest edge of a cube whose edges robosuite draws, m.
    """

    object_body: str
    max_steps: int
    success: str
    sizes: tuple[float, float] | None = None


TASKS = {
    "Lift": Task("cube_main", 200, "the cube is more than 4 cm above the table", (0.020, 0.022)),
    "PickPlaceCan": Task("Can_main", 300, "the can lies in its bin and the hand has left it"),
    "NutAssemblySquare": Task("SquareNut_main", 400, "the nut is on its peg and the hand has left"),
}

DELTA_METERS, DELTA_RADIANS = 0.05, 0.5  # full scale of a delta action
DENSITY = 1000.0  # of what robosuite makes, kg/m^3
WORKSPACE_LOW, WORKSPACE_HIGH = (-1.5, -1.5, 0.0), (1.5, 1.5, 2.5)


class Robosuite(Sim):
    """A robosuite task under operational-space control of the hand's pose, at 20 Hz.

    ``observation.state`` is (11,): the hand's position, the first two columns of its rotation
    matrix, both finger positions. ``observation.environment_state`` is (12,): the object's
    position, the first two columns of its rotation, the vector from hand to object. Rotations are
    columns because robosuite's quaternions jump in sign just where the hand points down.

    Args:
        task: one of `TASKS`.
        actions: ``absolute`` poses (x, y, z, rotation vector in the world, gripper) or ``delta``
            ones (-1..1, full scale 0.05 m and 0.5 rad); a positive gripper closes.
        cameras: camera names for ``observation.images.<camera>``, for instance ``agentview`` and
            ``robot0_eye_in_hand``; drawing needs OpenGL and costs far more than a step.
        image_size: side of the camera images, pixels.
        max_steps: ticks after which an episode times out; by default the task's.
        render_size: side of what `render` returns, pixels.
    """

    def __init__(
        self,
        task: str,
        *,
        actions: Literal["absolute", "delta"] = "absolute",
        cameras: Sequence[str] = (),
        image_size: int = 84,
        max_steps: int | None = None,
        render_size: int = 256,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"no robosuite task {task!r}; choose from {', '.join(TASKS)}")
        if actions not in ("absolute", "delta"):
            raise ValueError(f"no kind of actions {actions!r}; choose from absolute, delta")
        self.task = TASKS[task]
        self.cameras, self.image_size, self.render_size = tuple(cameras), image_size, render_size
        super().__init__(_env_spec(task, self.task, actions, self.cameras, image_size, max_steps))
        if self.cameras:
            require_gl()
        self.engine = make(task, actions)
        known = self.engine.sim.model.camera_names
        if unknown := set(self.cameras) - set(known):
            raise ValueError(f"no camera {sorted(unknown)} in {task}; choose from {known}")
        self._renderers: dict[int, Any] = {}

    @property
    def hand(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,), m, and rotation (3, 3) of the hand in the world."""
        data, site = self.engine.sim.data, self.engine.robots[0].eef_site_id["right"]
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    @property
    def fingers(self) -> NDArray[np.float64]:
        """(2,) finger positions, m; their difference is the gripper's width."""
        robot = self.engine.robots[0]
        return np.array(self.engine.sim.data.qpos[robot._ref_gripper_joint_pos_indexes["right"]])

    @property
    def finger_speed(self) -> float:
        """How fast the gripper's width changes, m/s, without sign."""
        robot = self.engine.robots[0]
        left, right = self.engine.sim.data.qvel[robot._ref_gripper_joint_vel_indexes["right"]]
        return abs(float(left - right))

    @property
    def object(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,), m, and rotation (3, 3) of the task's object in the world."""
        sim = self.engine.sim
        body = sim.model.body_name2id(self.task.object_body)
        return np.array(sim.data.body_xpos[body]), np.array(sim.data.body_xmat[body]).reshape(3, 3)

    def close(self) -> None:
        """Free the OpenGL contexts and the engine."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
        self.engine.close()

    def _reset(self, seed: int) -> Observation:
        # The placement samplers share this generator, so it is rewound and not replaced.
        self.engine.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        if self.task.sizes:
            self._resize(*self.task.sizes)
        self.engine.reset()
        self._arrange()
        self._forget()
        return self._observe()

    def _arrange(self) -> None:
        """Place things otherwise than robosuite does; what is random comes from `engine.rng`."""

    def _resize(self, least: float, largest: float) -> None:
        """Draw the cube's size as robosuite does whenever it compiles the model, and put it in."""
        mujoco = require("mujoco", extra="sim")
        model = self.engine.sim.model._model
        half = np.array([self.engine.rng.uniform(least, largest) for _ in range(3)])
        self.engine.cube.size = half.tolist()  # the samplers place it by this
        body = model.body(self.task.object_body).id
        geoms = np.flatnonzero(model.geom_bodyid == body)
        mass = DENSITY * 8 * half.prod()
        model.geom_size[geoms] = model.geom_aabb[geoms, 3:] = half
        model.geom_rbound[geoms] = np.linalg.norm(half)
        boxes = model.body_bvhadr[body] + np.arange(model.body_bvhnum[body])
        model.bvh_aabb[boxes, 3:] = half
        model.body_mass[body] = mass
        model.body_inertia[body] = mass / 3 * ((half**2).sum() - half**2)
        model.body_iquat[body] = 1, 0, 0, 0
        mujoco.mj_setConst(model, self.engine.sim.data._data)

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        _, reward, _, _ = self.engine.step(action)
        observation = self._observe()
        return observation, float(reward), False, {"is_success": bool(self.engine._check_success())}

    def _observe(self) -> Observation:
        # A step leaves the poses as they were before its last substep.
        mujoco = require("mujoco", extra="sim")
        mujoco.mj_kinematics(self.engine.sim.model._model, self.engine.sim.data._data)
        (hand, rotation), (thing, thing_rotation) = self.hand, self.object
        observation: Observation = {
            "observation.state": np.concatenate(
                [hand, *rotation.T[:2], self.fingers], dtype=np.float32
            ),
            "observation.environment_state": np.concatenate(
                [thing, *thing_rotation.T[:2], thing - hand], dtype=np.float32
            ),
        }
        for camera in self.cameras:
            picture = self._draw(camera, self.image_size)
            observation[f"observation.images.{camera}"] = np.ascontiguousarray(
                picture.transpose(2, 0, 1)
            )
        return observation

    def _save(self) -> Any:
        mujoco = require("mujoco", extra="sim")
        model, data = self.engine.sim.model._model, self.engine.sim.data._data
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, state, kind)
        gripper = self.engine.robots[0].gripper["right"].current_action.copy()
        return state, gripper, self.engine.timestep, self.engine.cur_time

    def _restore(self, state: Any) -> Observation:
        mujoco = require("mujoco", extra="sim")
        model, data = self.engine.sim.model._model, self.engine.sim.data._data
        state, gripper, self.engine.timestep, self.engine.cur_time = state
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(model, data, state, kind)
        mujoco.mj_forward(model, data)  # what is derived; it disturbs the solver's warm start
        mujoco.mj_setState(model, data, state, kind)
        self.engine.robots[0].gripper["right"].current_action = gripper.copy()
        self._forget()
        return self._observe()

    def _forget(self) -> None:
        """Have the controllers look at the scene anew, where they would remember another one."""
        for controller in self.engine.robots[0].part_controllers.values():
            controller.new_update = True

    def _render(self) -> NDArray[np.uint8]:
        require_gl()
        return self._draw("agentview", self.render_size)

    def _draw(self, camera: str, size: int) -> NDArray[np.uint8]:
        mujoco = require("mujoco", extra="sim")
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.engine.sim.model._model, size, size)
        shown = mujoco.MjvOption()
        shown.geomgroup[0] = 0  # collision shapes
        self._renderers[size].update_scene(self.engine.sim.data._data, camera, shown)
        picture: NDArray[np.uint8] = self._renderers[size].render()
        return picture


def make(task: str, actions: str, *, hard_reset: bool = False) -> Any:
    """robosuite's own environment, seeded with 0, without pictures.

    Args:
        task: one of `TASKS`.
        actions: ``absolute`` or ``delta``.
        hard_reset: compile the model again at every reset, as robosuite does unless told not to;
            it takes over a second and changes nothing but the size of Lift's cube.
    """
    choose_backend()
    backend = os.environ["MUJOCO_GL"]
    logger = logging.getLogger("robosuite_logs")
    logger.disabled = True  # it warns of robots and planners that nobody asked for
    suite = require("robosuite", extra="sim")
    os.environ["MUJOCO_GL"] = backend  # robosuite sets EGL, even where it is missing
    config = suite.load_composite_controller_config(robot="Panda")
    if actions == "absolute":
        config["body_parts"]["right"].update(input_type="absolute", input_ref_frame="world")
    return suite.make(
        task,
        robots="Panda",
        controller_configs=config,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        control_freq=20,
        ignore_done=True,
        hard_reset=hard_reset,
        seed=0,
    )


def _env_spec(
    name: str,
    task: Task,
    actions: str,
    cameras: tuple[str, ...],
    image_size: int,
    max_steps: int | None,
) -> EnvSpec:
    def pose(of: str) -> tuple[str, ...]:
        rotation = [f"{of}_r{row}{column}" for column in "xy" for row in "xyz"]
        return (*(f"{of}_{axis}" for axis in "xyz"), *rotation)

    observations = {
        "observation.state": TensorSpec(
            (11,), names=(*pose("hand"), "finger_left", "finger_right"), unit="m"
        ),
        "observation.environment_state": TensorSpec(
            (12,), names=(*pose("object"), *(f"hand_to_object_{axis}" for axis in "xyz")), unit="m"
        ),
    }
    for camera in cameras:
        observations[f"observation.images.{camera}"] = TensorSpec(
            (3, image_size, image_size), "uint8", 0, 255
        )
    turn = (2 * np.pi,) * 3
    absolute = actions == "absolute"
    action = ActionSpec(
        dim=7,
        kind=f"{actions}_pose",
        low=(*WORKSPACE_LOW, *(-x for x in turn), -1.0) if absolute else (-1.0,) * 7,
        high=(*WORKSPACE_HIGH, *turn, 1.0) if absolute else (1.0,) * 7,
        names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
        unit="m, rad" if absolute else f"{DELTA_METERS} m, {DELTA_RADIANS} rad",
    )
    return EnvSpec(
        name=f"robosuite {name}",
        observations=observations,
        action=action,
        control_hz=20.0,
        max_steps=max_steps or task.max_steps,
        success=task.success,
    )
