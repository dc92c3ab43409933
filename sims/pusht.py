"""PushT: a disc pushes a T-shaped block onto its outline (gym-pusht; Chi et al., 2023)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim

__all__ = ["PushT"]

TABLE = 512.0  # pixels a side; the block may stick out a little
OUTSIDE = 128.0


class PushT(Sim):
    """gym-pusht behind the simulator contract; needs no display and no OpenGL.

    ``observation.state`` is the disc (x, y), ``observation.environment_state`` the eight corners of
    the block (x0, y0, ... x7, y7), both in pixels; the action is where the disc shall go.

    Args:
        images: also give ``observation.images.top``, (3, 96, 96); costs most of a step.
        near_goal: share of seeds whose block starts within 40 pixels and 0.6 radians of its
            outline, for demonstrations of the last, fine pushes.
        max_steps: ticks after which an episode times out.
        render_size: side of what `render` returns, pixels.
    """

    def __init__(
        self,
        *,
        images: bool = False,
        near_goal: float = 0.0,
        max_steps: int = 300,
        render_size: int = 256,
    ) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        if not os.environ.get("DISPLAY"):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        engine = require("gym_pusht.envs.pusht", extra="pusht")
        corners = tuple(f"corner{i}_{axis}" for i in range(8) for axis in "xy")
        observations = {
            "observation.state": TensorSpec(
                (2,), low=0.0, high=TABLE, names=("disc_x", "disc_y"), unit="pixel"
            ),
            "observation.environment_state": TensorSpec(
                (16,), low=-OUTSIDE, high=TABLE + OUTSIDE, names=corners, unit="pixel"
            ),
        }
        if images:
            observations["observation.images.top"] = TensorSpec((3, 96, 96), "uint8", 0, 255)
        super().__init__(
            EnvSpec(
                name="PushT",
                observations=observations,
                action=ActionSpec(
                    dim=2,
                    kind="absolute_position",
                    low=(0.0, 0.0),
                    high=(TABLE, TABLE),
                    names=("disc_x", "disc_y"),
                    unit="pixel",
                ),
                control_hz=10.0,
                max_steps=max_steps,
                success="the block covers more than 95 % of its outline",
            )
        )
        self.images = images
        self.near_goal = near_goal
        self.engine = engine.PushTEnv(
            obs_type="environment_state_agent_pos",
            visualization_width=render_size,
            visualization_height=render_size,
        )

    def _reset(self, seed: int) -> Observation:
        self.engine._last_action = None  # else it stays in the next episode's first picture
        seen, _ = self.engine.reset(seed=seed)
        rng = np.random.default_rng(seed)
        if rng.uniform() < self.near_goal:
            self._place_near_goal(rng)
            seen = self.engine.get_obs()
        return self._observe(seen)

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        seen, reward, _, _, info = self.engine.step(action)
        info["is_success"] = bool(info["is_success"])
        return self._observe(seen), float(reward), False, info

    def _place_near_goal(self, rng: np.random.Generator) -> None:
        block, agent, space = self.engine.block, self.engine.agent, self.engine.space
        distance, bearing = 40 * np.sqrt(rng.uniform()), rng.uniform(-np.pi, np.pi)
        goal_x, goal_y, goal_angle = self.engine.goal_pose
        block.angle = goal_angle + rng.uniform(-0.6, 0.6)
        block.position = (goal_x + distance * np.cos(bearing), goal_y + distance * np.sin(bearing))
        space.reindex_shapes_for_body(block)
        free = False
        while not free:
            agent.position = tuple(rng.uniform(20, 492, 2))
            free = min(shape.point_query(agent.position).distance for shape in block.shapes) > 18
        block.velocity, block.angular_velocity, agent.velocity = (0, 0), 0, (0, 0)
        space.reindex_shapes_for_body(agent)

    def _render(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.engine.render(), dtype=np.uint8)

    def _observe(self, seen: dict[str, NDArray[np.float64]]) -> Observation:
        observation: Observation = {
            "observation.state": seen["agent_pos"].astype(np.float32),
            "observation.environment_state": seen["environment_state"].astype(np.float32),
        }
        if self.images:
            picture = self.engine._render(visualize=False)
            observation["observation.images.top"] = np.ascontiguousarray(picture.transpose(2, 0, 1))
        return observation
