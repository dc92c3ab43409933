"""The experts solve their tasks, are functions of the scene, and find back from disturbances."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastloop.sims.experts.robosuite import DOWN, EXPERTS, hand_action
from fastloop.sims.robosuite import Robosuite

pytestmark = pytest.mark.skipif(
    find_spec("robosuite") is None, reason='pip install -c constraints.txt -e ".[sim]"'
)


@pytest.fixture(scope="module", params=EXPERTS)
def sim(request):
    made = Robosuite(request.param)
    made.expert = EXPERTS[request.param]()
    yield made
    made.close()


def solve(sim: Robosuite) -> bool:
    ended = False
    while not ended:
        *_, success, timed_out, _ = sim.step(sim.expert.act(sim))
        ended = success or timed_out
    return success


def test_it_solves_its_task(sim: Robosuite) -> None:
    sim.reset(seed=100)
    sim.expert.reset(sim)
    assert solve(sim)


def test_it_reads_its_move_off_the_scene(sim: Robosuite) -> None:
    sim.reset(seed=101)
    for _ in range(30):
        sim.step(sim.expert.act(sim))
    state = sim.save()
    action = sim.expert.act(sim)
    sim.restore(state)
    np.testing.assert_allclose(EXPERTS[sim.engine.__class__.__name__]().act(sim), action, atol=1e-9)


def test_it_finds_back_from_a_shove(sim: Robosuite) -> None:
    rng = np.random.default_rng(0)
    sim.reset(seed=102)
    for _ in range(2):
        for _ in range(20):
            sim.step(sim.expert.act(sim))
        sim.expert.reset(sim)
        for _ in range(6):
            sim.step(sim.expert.nudge(sim, rng))
        sim.expert.reset(sim)
    assert solve(sim)


def test_both_kinds_of_action_ask_for_the_same_pose() -> None:
    poses = {}
    rotation = Rotation.from_rotvec([0, 0, 0.3]).as_matrix() @ DOWN
    for kind in ("absolute", "delta"):
        sim = Robosuite("Lift", actions=kind)
        sim.reset(seed=0)
        for _ in range(10):
            goal = np.array([-0.05, 0.05, 0.95])
            observation = sim.step(hand_action(sim, goal, rotation, -1.0))[0]
        poses[kind] = observation["observation.state"]
        sim.close()
    np.testing.assert_allclose(poses["absolute"], poses["delta"], atol=1e-5)
