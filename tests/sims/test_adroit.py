"""AdroitHandDoor: exact seeds and states, and a success that is the door's own angle."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastloop.datasets import adroit_demos
from fastloop.sims.adroit import AdroitDoor

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium_robotics") is None, reason='pip install -c constraints.txt -e ".[sim]"'
)

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (30, 28))


@pytest.fixture(scope="module")
def sim():
    made = AdroitDoor()
    yield made
    made.close()


def rollout(sim: AdroitDoor, actions: np.ndarray) -> np.ndarray:
    frames = [sim.step(action)[0] for action in actions]
    return np.array([np.concatenate(list(frame.values())) for frame in frames])


def test_a_seed_is_an_episode_in_every_object(sim: AdroitDoor) -> None:
    sim.reset(seed=3)
    first = rollout(sim, ACTIONS)
    sim.reset(seed=4)
    assert not np.array_equal(rollout(sim, ACTIONS), first)
    for again in (sim, AdroitDoor()):
        again.reset(seed=3)
        np.testing.assert_array_equal(rollout(again, ACTIONS), first)


def test_restore_is_exact_in_this_object_and_in_another(sim: AdroitDoor) -> None:
    sim.reset(seed=1)
    rollout(sim, ACTIONS[:15])
    state = sim.save()
    expected = rollout(sim, ACTIONS[15:])
    other = AdroitDoor()
    other.reset(seed=2)
    for restored in (sim, other):
        restored.restore(state)
        np.testing.assert_array_equal(rollout(restored, ACTIONS[15:]), expected)


def test_observations_are_what_the_spec_says(sim: AdroitDoor) -> None:
    observation, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    palm = observation["observation.state"][27:]
    handle, between = np.split(observation["observation.environment_state"][2:8], 2)
    np.testing.assert_allclose(palm - handle, between, atol=1e-6)


def test_the_door_beyond_its_angle_is_a_success(sim: AdroitDoor) -> None:
    shut, _ = sim.reset(seed=0)
    door = sim.engine.model.body_pos[sim.engine.door_body_id].copy()
    for angle, opened in ((1.2, False), (1.5, True)):
        shut["observation.environment_state"][:2] = 1.5, angle
        sim.start_like(shut, door)
        _, _, terminated, _, info = sim.step(np.zeros(28))
        assert (terminated, info["is_success"]) == (opened, opened)


def test_an_episode_starts_like_any_observation(sim: AdroitDoor) -> None:
    sim.reset(seed=2)
    door = sim.engine.model.body_pos[sim.engine.door_body_id].copy()
    rollout(sim, ACTIONS)
    there = sim.engine.data.qpos.copy()
    sim.step(ACTIONS[0])
    sim.engine.set_env_state({"qpos": there, "qvel": np.zeros(30), "door_body_pos": door})
    seen = sim._observe(sim.engine._get_obs())
    sim.reset(seed=9)
    again = sim.start_like(seen, door)
    np.testing.assert_allclose(sim.engine.data.qpos, there, atol=1e-6)
    for key, value in seen.items():
        np.testing.assert_allclose(again[key], value, atol=1e-6)


def test_the_human_demonstrations_replay_as_recorded(sim: AdroitDoor, realdata: Path) -> None:
    path = realdata / "adroit_door_demos" / "door-v0_demos.npz"
    demonstrations, doors = adroit_demos.read(path), adroit_demos.door_positions(path)
    shown, replayed = [], []
    for demonstration, door in zip(demonstrations[::4], doors[::4], strict=True):
        frames = demonstration.observations
        sim.reset(seed=0)
        sim.start_like({key: value[0] for key, value in frames.items()}, door)
        seen = [sim.step(action)[0] for action in demonstration.actions]
        hinge = [frame["observation.environment_state"][1] for frame in seen]
        shown.append(frames["observation.environment_state"][:, 1].max())
        replayed.append(max(hinge))
    np.testing.assert_allclose(replayed, shown, atol=0.03)
    assert min(replayed) > 1.0


@pytest.mark.gl
def test_the_picture_is_no_blank(sim: AdroitDoor) -> None:
    sim.reset(seed=0)
    picture = sim.render()
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 10
