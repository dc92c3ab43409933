"""The contract of a simulator: a gymnasium environment with a spec, exact seeds, saved states."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastloop.policies.spec import EnvSpec, TensorSpec

__all__ = ["CannotRestoreError", "Observation", "Sim", "SimState"]

Observation = dict[str, NDArray[Any]]


class CannotRestoreError(RuntimeError):
    """An episode did not come out the same when it was replayed; the message says where."""


@dataclass(frozen=True)
class SimState:
    """A moment of an episode, good for every simulator object of the same configuration.

    Attributes:
        seed: the episode's seed.
        actions: what was done since the reset.
        observation: what was seen then.
        engine: the engine's own state, or None where it has none that is exact: then the episode is
            replayed.
    """

    seed: int
    actions: tuple[NDArray[np.float64], ...]
    observation: Observation
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

    Attributes:
        distinct_seeds: how many seeds begin different episodes, from 0; None is without end. More
            episodes would be the same ones again, and count for nothing.
        left_out: what it was given and cannot use, in words.
        notes: what else a report has to say of it.
    """

    distinct_seeds: int | None = None
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, env_spec: EnvSpec) -> None:
        self.env_spec = env_spec
        self.render_mode = "rgb_array"
        spaces: dict[str, gymnasium.Space[Any]] = {
            key: _space(spec) for key, spec in env_spec.observations.items()
        }
        self.observation_space = cast(gymnasium.Space[Observation], gymnasium.spaces.Dict(spaces))
        self._low = np.asarray(env_spec.action.low, dtype=np.float64)
        self._high = np.asarray(env_spec.action.high, dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(
            self._low.astype(np.float32), self._high.astype(np.float32)
        )
        self._seed: int | None = None
        self._actions: list[NDArray[np.float64]] = []

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
        self._seed, self._actions = seed, []
        self._observation = self._reset(seed)
        return self._observation, {"is_success": False, "seed": seed}

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
        if self._seed is None:
            raise ValueError(f"{self.env_spec.name}: call reset() before step()")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self._low.shape:
            raise ValueError(
                f"{self.env_spec.name} takes actions of shape {self._low.shape}, got {action.shape}"
            )
        if not np.isfinite(action).all():
            raise ValueError(
                f"{self.env_spec.name} got the action {action} at tick {len(self._actions)}: "
                "every element must be finite"
            )
        action = np.clip(action, self._low, self._high)
        self._observation, reward, ended, info = self._step(action)
        self._actions.append(action)
        terminated = ended or bool(info["is_success"])
        truncated = len(self._actions) >= self.env_spec.max_steps and not terminated
        return self._observation, reward, terminated, truncated, info

    def save(self) -> SimState:
        """The present moment, to be given to `restore`; the episode goes on undisturbed."""
        if self._seed is None:
            raise ValueError(f"{self.env_spec.name}: call reset() before save()")
        return SimState(self._seed, tuple(self._actions), self._observation, self._save())

    def restore(self, state: SimState) -> Observation:
        """Go back (or over) to a saved moment and return its observation.

        Raises:
            CannotRestoreError: where the engine's state cannot be set exactly and a replay of the
                episode comes out different.
        """
        if state.engine is None:
            observation = self._reset(state.seed)
            for action in state.actions:
                observation = self._step(action)[0]
        else:
            if state.seed != self._seed:
                self._reset(state.seed)
            observation = self._restore(state.engine)
        for key, value in state.observation.items():
            if not np.array_equal(observation[key], value):
                raise CannotRestoreError(
                    f"{self.env_spec.name} is not repeatable: {key} came out different after "
                    f"{len(state.actions)} steps of the episode with seed {state.seed}"
                )
        self._seed, self._actions = state.seed, list(state.actions)
        self._observation = observation
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
        """The engine's exact state, or None where only a replay is exact."""
        return None

    def _restore(self, state: Any) -> Observation:
        """Set what `_save` gave, within the same episode."""
        raise NotImplementedError


def _space(spec: TensorSpec) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(spec.low, spec.high, spec.shape, np.dtype(spec.dtype).type)
