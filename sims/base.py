"""The contract of a simulator: a gymnasium environment with a spec, exact seeds, saved states."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from fastloop.policies.spec import EnvSpec, TensorSpec
from numpy.typing import NDArray

__all__ = ["CannotRestoreError", "Observation", "Sim", "SimState"]

Observation = dict[str, NDArray[Any]]


class CannotRestoreError(NotImplementedError):
    """The engine behind a simulator cannot save or restore its state; the message names it."""


@dataclass(frozen=True)
class SimState:
    """A moment of an episode, good for the simulator object that saved it and for its equals.

    Attributes:
        step: ticks since the reset.
        engine: what the engine needs to go on from here.
    """

    step: int
    engine: Any


class Sim(gymnasium.Env[Observation, NDArray[Any]], abc.ABC):
    """A task in closed loop: one robot, one world, one judge of success.

    Observations are dicts with LeRobot's names: ``observation.state`` (what the robot feels,
    float32), ``observation.environment_state`` (the privileged state of the objects, float32) and
    ``observation.images.<camera>`` (uint8, channels first) where cameras were asked for.

    A subclass implements the methods with a leading underscore; this class counts ticks, checks
    actions, ends the episode at its first success and times it out after `env_spec.max_steps`.

    Args:
        env_spec: what the environment shows and obeys.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, env_spec: EnvSpec) -> None:
        self.env_spec = env_spec
        self.render_mode = "rgb_array"
        self.observation_space: gymnasium.Space[Observation] = gymnasium.spaces.Dict(
            {key: _space(spec) for key, spec in env_spec.observations.items()}
        )
        self._low = np.asarray(env_spec.action.low, dtype=np.float64)
        self._high = np.asarray(env_spec.action.high, dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(
            self._low.astype(np.float32), self._high.astype(np.float32)
        )
        self._step_count: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: equal seeds give equal episodes, in this object, another one or another process;
                without it the seed is drawn from the last one given.
            options: none are known here.

        Returns:
            The first observation, and info with ``is_success`` and the ``seed`` used.
        """
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._step_count = 0
        return self._reset(seed), {"is_success": False, "seed": seed}

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act for one tick.

        Args:
            action: (A,) in the units of `env_spec.action`; clipped to its bounds.

        Returns:
            Observation, reward, terminated (at the first success, or when the world ended),
            truncated (timed out), and info with ``is_success``.

        Raises:
            ValueError: for an action of another shape or with a number that is not finite, and
                before the first reset.
        """
        if self._step_count is None:
            raise ValueError(f"{self.env_spec.name}: call reset() before step()")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self._low.shape:
            raise ValueError(
                f"{self.env_spec.name} takes actions of shape {self._low.shape}, got {action.shape}"
            )
        if not np.isfinite(action).all():
            raise ValueError(
                f"{self.env_spec.name} got the action {action} at tick {self._step_count}: "
                "every element must be finite"
            )
        observation, reward, ended, info = self._step(np.clip(action, self._low, self._high))
        self._step_count += 1
        terminated = ended or bool(info["is_success"])
        truncated = self._step_count >= self.env_spec.max_steps and not terminated
        return observation, reward, terminated, truncated, info

    def save(self) -> SimState:
        """The present moment, to be given to `restore`.

        Raises:
            CannotRestoreError: where the engine cannot.
        """
        if self._step_count is None:
            raise ValueError(f"{self.env_spec.name}: call reset() before save()")
        return SimState(self._step_count, self._save())

    def restore(self, state: SimState) -> Observation:
        """Go back (or over) to a saved moment and return its observation.

        Raises:
            CannotRestoreError: where the engine cannot.
        """
        if self._step_count is None:
            raise ValueError(f"{self.env_spec.name}: call reset() before restore()")
        observation = self._restore(state.engine)
        self._step_count = state.step
        return observation

    def render(self) -> NDArray[np.uint8]:
        """The scene as (H, W, 3) uint8."""
        return self._render()

    @abc.abstractmethod
    def _reset(self, seed: int) -> Observation:
        """Begin the episode that belongs to `seed`."""

    @abc.abstractmethod
    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Observation, reward, whether the world ended, and info with ``is_success``."""

    @abc.abstractmethod
    def _render(self) -> NDArray[np.uint8]:
        """The scene as (H, W, 3) uint8."""

    def _save(self) -> Any:
        raise CannotRestoreError(f"{self.env_spec.name} cannot save its state")

    def _restore(self, state: Any) -> Observation:
        raise CannotRestoreError(f"{self.env_spec.name} cannot restore a state")


def _space(spec: TensorSpec) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(spec.low, spec.high, spec.shape, np.dtype(spec.dtype).type)
