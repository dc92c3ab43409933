"""AdroitHandDoor: exact seeds and states, and a success that is the door's own angle."""

from __future__ import annotations

import numpy as np
import pytest

from fastloop.sims.adroit import AdroitDoor
from fastloop.sims.gl import EGL_INSTALL, egl_is_there

pytest.importorskip("gymnasium_robotics", reason='pip install -c constraints.txt -e ".[sim]"')

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
    sim.reset(seed=0)
    qpos = np.zeros(30)
    for angle, opened in ((1.2, False), (1.5, True)):
        qpos[28], qpos[29] = angle, 1.5
        sim.start_at(qpos, sim.engine.model.body_pos[sim.engine.door_body_id].copy())
        _, _, terminated, _, info = sim.step(np.zeros(28))
        assert (terminated, info["is_success"]) == (opened, opened)


@pytest.mark.gl
@pytest.mark.skipif(not egl_is_there(), reason=EGL_INSTALL)
def test_the_picture_is_no_blank(sim: AdroitDoor) -> None:
    sim.reset(seed=0)
    picture = sim.render()
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 10
