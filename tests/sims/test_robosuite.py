"""robosuite tasks: exact seeds and states, both kinds of actions, observations, no OpenGL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from fastloop.sims.robosuite import TASKS, Robosuite, make

pytestmark = pytest.mark.skipif(
    find_spec("robosuite") is None, reason='pip install -c constraints.txt -e ".[sim]"'
)

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (16, 7))
FRESH = """
import runpy, sys
here = runpy.run_path(sys.argv[1])
sim = here["Robosuite"](sys.argv[2], actions="delta")
sim.reset(seed=3)
print(here["rollout"](sim, here["ACTIONS"]).tobytes().hex())
"""


@pytest.fixture(scope="module", params=TASKS)
def task(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sim(task: str) -> Iterator[Robosuite]:
    made = Robosuite(task, actions="delta")
    yield made
    made.close()


def rollout(sim: Robosuite, actions: np.ndarray) -> np.ndarray:
    frames = [sim.step(action)[0] for action in actions]
    return np.array([np.concatenate(list(frame.values())) for frame in frames])


def test_a_seed_is_an_episode_everywhere(task: str, sim: Robosuite) -> None:
    sim.reset(seed=3)
    first = rollout(sim, ACTIONS)
    sim.reset(seed=4)
    assert not np.array_equal(rollout(sim, ACTIONS), first)
    sim.reset(seed=3)
    np.testing.assert_array_equal(rollout(sim, ACTIONS), first)
    if task != "PickPlaceCan":  # to start a process takes seconds, so one of them speaks for all
        return
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, __file__, task],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MUJOCO_GL": "disabled"},
    )
    assert bytes.fromhex(fresh.stdout) == first.tobytes()
    assert fresh.stderr == ""


@pytest.mark.parametrize("ticks", [0, 8])
def test_restore_is_exact(sim: Robosuite, ticks: int) -> None:
    sim.reset(seed=1)
    rollout(sim, ACTIONS[:ticks])
    state = sim.save()
    expected = rollout(sim, ACTIONS[ticks:])
    sim.restore(state)
    np.testing.assert_array_equal(rollout(sim, ACTIONS[ticks:]), expected)
    sim.reset(seed=2)  # another episode, with another cube and another place for everything
    sim.restore(state)
    np.testing.assert_array_equal(rollout(sim, ACTIONS[ticks:]), expected)


def test_observations_are_what_the_spec_says(sim: Robosuite) -> None:
    observation, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    state, thing = observation["observation.state"], observation["observation.environment_state"]
    np.testing.assert_allclose(thing[:3] - state[:3], thing[9:], atol=1e-6)
    for columns in (state[3:9], thing[3:9]):
        columns = columns.reshape(2, 3)
        np.testing.assert_allclose(columns @ columns.T, np.eye(2), atol=1e-5)
    assert state[9] > 0 > state[10]


@pytest.mark.slow
def test_the_cube_is_the_one_that_robosuite_would_compile() -> None:
    sim = Robosuite("Lift", actions="delta")
    sim.reset(seed=6)
    theirs = make("Lift", "delta", hard_reset=True)
    theirs.rng.bit_generator.state = np.random.default_rng(6).bit_generator.state
    theirs.reset()
    model, compiled = sim.engine.sim.model._model, theirs.sim.model._model
    for name in (
        "geom_size",
        "geom_rbound",
        "geom_aabb",
        "bvh_aabb",
        "body_mass",
        "dof_invweight0",
    ):
        np.testing.assert_allclose(
            getattr(model, name), getattr(compiled, name), atol=1e-9, rtol=1e-6, err_msg=name
        )
    for action in ACTIONS:
        sim.step(action)
        theirs.step(action)
    np.testing.assert_allclose(sim.engine.sim.data.qpos, theirs.sim.data.qpos, atol=1e-5)
    sim.close()
    theirs.close()


def test_absolute_actions_go_where_they_say() -> None:
    sim = Robosuite("Lift", actions="absolute")
    observation, _ = sim.reset(seed=0)
    goal = observation["observation.state"][:3] + np.array([0.05, -0.05, 0.05])
    down = np.pi * np.array([1, 1, 0]) / np.sqrt(2)
    for _ in range(25):
        observation = sim.step(np.concatenate([goal, down, [-1]]))[0]
    state = observation["observation.state"]
    np.testing.assert_allclose(state[:3], goal, atol=0.005)
    np.testing.assert_allclose(state[3:9], [0, 1, 0, 1, 0, 0], atol=0.03)
    assert state[9] - state[10] > 0.07  # the fingers opened
    sim.close()


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ValueError, match="NutAssemblySquare"):
        Robosuite("Stack")
    with pytest.raises(ValueError, match="delta"):
        Robosuite("Lift", actions="joint")


@pytest.mark.gl
def test_cameras_see_the_scene() -> None:
    sim = Robosuite("Lift", cameras=("agentview", "robot0_eye_in_hand"), image_size=48)
    observation, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    front = observation["observation.images.agentview"].astype(int)
    red = (front[0] > 100) & (front[0] > 2 * front[1])
    rows, _ = np.nonzero(red)
    assert len(rows) > 2  # the cube
    assert rows.mean() > 12  # the picture is not upside down
    assert observation["observation.images.robot0_eye_in_hand"].std() > 10
    assert sim.render().shape == (256, 256, 3)
    sim.close()
    with pytest.raises(ValueError, match="agentview"):
        Robosuite("Lift", cameras=("nowhere",))
