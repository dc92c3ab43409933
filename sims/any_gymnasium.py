"""Any environment that gymnasium knows by an id, behind the simulator contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import Observation, Sim
from fastloop.sims.gl import choose_backend

__all__ = ["AnyGymnasium"]


class AnyGymnasium(Sim):
    """An environment with a Box action and a Box observation, or a Dict of Boxes.

    A Box observation becomes ``observation.state``, a Dict entry ``observation.<key>``; pictures
    (uint8, channels last) become ``observation.images.<key>``, channels first. States are restored
    by replaying the episode.

    Args:
        id: gymnasium's id, for instance ``Pendulum-v1`` or ``FetchReach-v4``.
        module: package that registers the id when it is imported, such as ``gymnasium_robotics``.
        arguments: of `gymnasium.make`.
        action_kind: what the action's numbers mean.
        control_hz: ticks a second; by default 1/dt of the environment, or its frame rate.
        max_steps: ticks after which an episode times out; by default the registered limit.
        success_reward: reward of one tick that counts as success, where the environment's info has
            neither ``is_success`` nor ``success``.
    """

    def __init__(
        self,
        id: str,
        *,
        module: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        action_kind: str = "unknown",
        control_hz: float | None = None,
        max_steps: int | None = None,
        success_reward: float | None = None,
    ) -> None:
        choose_backend()
        if module is not None:
            require(module, extra="sim")
        try:
            made = gymnasium.make(id, render_mode="rgb_array", **(arguments or {}))
        except gymnasium.error.Error as error:
            raise ValueError(f"gymnasium cannot make {id!r}: {error}") from error
        registered = made.spec.max_episode_steps if made.spec is not None else None
        self.engine = made.unwrapped
        self.success_reward = success_reward
        seen, acts = self.engine.observation_space, self.engine.action_space
        if not isinstance(acts, spaces.Box) or len(acts.shape) != 1:
            raise ValueError(f"{id} takes {acts}; a Box with one axis is needed")
        steps = max_steps or registered
        if steps is None:
            raise ValueError(f"{id} registers no time limit: set max_steps")
        hertz = control_hz or _rate(self.engine)
        if hertz is None:
            raise ValueError(f"{id} does not say how fast it ticks: set control_hz")
        entries = seen.spaces if isinstance(seen, spaces.Dict) else {"state": seen}
        unfit = [key for key, space in entries.items() if not isinstance(space, spaces.Box)]
        if unfit:
            raise ValueError(f"{id} shows {unfit} as something else than a Box: {seen}")
        self._names = {key: _name(key, space) for key, space in entries.items()}
        super().__init__(
            EnvSpec(
                name=id,
                observations={self._names[key]: _spec(space) for key, space in entries.items()},
                action=ActionSpec(
                    dim=acts.shape[0],
                    kind=action_kind,
                    low=tuple(acts.low.tolist()),
                    high=tuple(acts.high.tolist()),
                ),
                control_hz=hertz,
                max_steps=steps,
                success="the environment's own criterion"
                if success_reward is None
                else f"a tick's reward reaches {success_reward:g}",
            )
        )

    def close(self) -> None:
        """Close the environment."""
        self.engine.close()

    def _reset(self, seed: int) -> Observation:
        return self._observe(self.engine.reset(seed=seed)[0])

    def _step(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        dtype = self.engine.action_space.dtype
        seen, reward, ended, _, info = self.engine.step(action.astype(dtype))
        if self.success_reward is not None:
            success = float(reward) >= self.success_reward
        else:
            success = bool(info.get("is_success", info.get("success", False)))
        return self._observe(seen), float(reward), bool(ended), {**info, "is_success": success}

    def _render(self) -> NDArray[np.uint8]:
        return np.asarray(self.engine.render(), dtype=np.uint8)

    def _observe(self, seen: Any) -> Observation:
        entries = seen if isinstance(seen, Mapping) else {"state": seen}
        return {name: _value(entries[key]) for key, name in self._names.items()}


def _is_picture(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3


def _name(key: str, space: Any) -> str:
    if _is_picture(space):
        return f"observation.images.{key}"
    return key if key.startswith("observation.") else f"observation.{key}"


def _spec(space: Any) -> TensorSpec:
    if _is_picture(space):
        height, width, channels = space.shape
        return TensorSpec((channels, height, width), "uint8", 0, 255)
    return TensorSpec(space.shape, low=float(space.low.min()), high=float(space.high.max()))


def _value(value: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value)
    if array.dtype == np.uint8 and array.ndim == 3:
        return np.ascontiguousarray(array.transpose(2, 0, 1))
    return array.astype(np.float32)


def _rate(engine: Any) -> float | None:
    if getattr(engine, "dt", None):
        return 1 / float(engine.dt)
    frames = engine.metadata.get("render_fps")
    return float(frames) if frames else None
