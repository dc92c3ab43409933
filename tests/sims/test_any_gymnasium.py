"""Environments by id: names, shapes, success, and what cannot be driven."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fastloop.sims.any_gymnasium import AnyGymnasium


class Grasp(gymnasium.Env):
    """A Dict observation with a picture and a goal; succeeds when the action is its goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, hidden: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "achieved_goal": spaces.Box(-1, 1, (2,)),
                "front": spaces.Box(0, 255, (4, 6, 3), np.uint8),
                **({"count": spaces.Discrete(2)} if hidden else {}),
            }
        )
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        success = bool(np.allclose(action, self.goal, atol=1e-3))
        return self._observe(), -1.0, False, False, {"success": success}

    def _observe(self) -> dict[str, np.ndarray]:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[..., 2] = 9
        return {"achieved_goal": self.goal, "front": picture}


@pytest.fixture(scope="module", autouse=True)
def registered():
    gymnasium.register("FastloopTestGrasp-v0", Grasp, max_episode_steps=7)
    yield
    del gymnasium.registry["FastloopTestGrasp-v0"]


def test_pendulum_is_seeded_restored_and_judged_by_its_reward() -> None:
    sim = AnyGymnasium("Pendulum-v1", success_reward=-0.01, action_kind="torque")
    assert sim.env_spec.max_steps == 200
    assert sim.env_spec.control_hz == pytest.approx(20)
    first, _ = sim.reset(seed=5)
    assert sim.observation_space.contains(first)
    sim.step([1.0])
    state = sim.save()
    expected = sim.step([-1.0])[0]["observation.state"]
    sim.restore(state)
    np.testing.assert_array_equal(sim.step([-1.0])[0]["observation.state"], expected)
    np.testing.assert_array_equal(
        sim.reset(seed=5)[0]["observation.state"], first["observation.state"]
    )
    sim.engine.state = np.array([0.0, 0.0])  # upright and at rest
    assert sim.step([0.0])[4]["is_success"]


def test_a_dict_is_flattened_by_key_and_pictures_turn_channels_first() -> None:
    sim = AnyGymnasium("FastloopTestGrasp-v0")
    observation, _ = sim.reset(seed=0)
    assert set(observation) == {"observation.achieved_goal", "observation.images.front"}
    assert observation["observation.images.front"].shape == (3, 4, 6)
    assert (observation["observation.images.front"][2] == 9).all()
    assert sim.observation_space.contains(observation)
    _, _, terminated, _, info = sim.step(observation["observation.achieved_goal"])
    assert terminated
    assert info["is_success"]


@pytest.mark.parametrize(
    ("id", "arguments", "message"),
    [
        ("CartPole-v1", {}, "Box"),
        ("FastloopTestGrasp-v0", {"hidden": True}, "count"),
    ],
)
def test_what_cannot_be_driven_is_named(id: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnyGymnasium(id, arguments=arguments)
