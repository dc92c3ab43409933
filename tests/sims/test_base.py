"""The rules that every simulator keeps, on a world of one number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.sims.base import CannotRestoreError, Sim


class Walk(Sim):
    """A position that moves by the action; succeeds beyond 3. `jitter` makes it unrepeatable."""

    def __init__(self, jitter: float = 0.0) -> None:
        super().__init__(
            EnvSpec(
                name="Walk",
                observations={"observation.state": TensorSpec((1,))},
                action=ActionSpec(1, "delta_position", (-1.0,), (1.0,)),
                control_hz=10.0,
                max_steps=5,
            )
        )
        self.jitter = jitter
        self.noise = np.random.default_rng(0)

    def _reset(self, seed: int) -> dict[str, np.ndarray]:
        self.x = float(np.random.default_rng(seed).uniform(-1, 0))
        return self._observe()

    def _step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, dict[str, Any]]:
        self.x += action[0] + self.jitter * self.noise.normal()
        return self._observe(), self.x, False, {"is_success": self.x > 3}

    def _render(self) -> np.ndarray:
        return np.zeros((2, 2, 3), np.uint8)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"observation.state": np.array([self.x], np.float32)}


def test_the_first_success_ends_the_episode_and_time_runs_out_otherwise() -> None:
    sim = Walk()
    sim.reset(seed=0)
    outcomes = [sim.step([1.0])[2:4] for _ in range(4)]
    assert outcomes[-1] == (True, False)
    assert not any(ended for ended, _ in outcomes[:-1])
    sim.reset(seed=0)
    assert [sim.step([0.0])[2:4] for _ in range(5)][-1] == (False, True)


def test_actions_are_clipped_to_the_spec() -> None:
    sim = Walk()
    start = sim.reset(seed=0)[0]["observation.state"][0]
    assert sim.step([100.0])[0]["observation.state"][0] == pytest.approx(start + 1)


@pytest.mark.parametrize("action", [[np.nan], [np.inf], [0.0, 0.0], 0.0])
def test_an_impossible_action_is_named(action: Any) -> None:
    sim = Walk()
    sim.reset(seed=0)
    with pytest.raises(ValueError, match="Walk"):
        sim.step(action)


def test_use_before_reset_is_named() -> None:
    for use in (lambda sim: sim.step([0.0]), lambda sim: sim.save()):
        with pytest.raises(ValueError, match="reset"):
            use(Walk())


def test_a_replayed_state_goes_on_as_the_original_did() -> None:
    sim = Walk()
    sim.reset(seed=4)
    sim.step([0.3])
    state = sim.save()
    expected = [sim.step([0.2]) for _ in range(4)]
    other = Walk()
    other.restore(state)
    for (seen, *rest), (again, *rest_again) in zip(
        expected, [other.step([0.2]) for _ in range(4)], strict=True
    ):
        assert rest == rest_again
        np.testing.assert_array_equal(seen["observation.state"], again["observation.state"])


def test_a_world_that_does_not_repeat_says_so() -> None:
    sim = Walk(jitter=0.1)
    sim.reset(seed=4)
    sim.step([0.3])
    with pytest.raises(CannotRestoreError, match="Walk is not repeatable"):
        sim.restore(sim.save())


def test_unseeded_resets_follow_from_the_last_seed() -> None:
    sims = [Walk(), Walk()]
    for sim in sims:
        sim.reset(seed=7)
    seeds = [[sim.reset()[1]["seed"] for _ in range(3)] for sim in sims]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
