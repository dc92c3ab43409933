"""The experts of the memory tasks succeed, rest as long as they say, and bear a shove."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from fastloop.sims.experts.memory import PlaceOppositeExpert, SquareTwiceExpert
from fastloop.sims.robosuite_memory import PlaceOpposite, SquareTwice

pytestmark = pytest.mark.skipif(
    find_spec("robosuite") is None, reason='pip install -c constraints.txt -e ".[sim]"'
)


@pytest.fixture(scope="module", params=["square", "place"])
def sim(request):
    square = request.param == "square"
    made = SquareTwice() if square else PlaceOpposite()
    made.expert = SquareTwiceExpert() if square else PlaceOppositeExpert()
    yield made
    made.close()


def solve(sim) -> bool:
    ended = False
    while not ended:
        *_, terminated, truncated, info = sim.step(sim.expert.act(sim))
        ended = terminated or truncated
    return info["is_success"]


@pytest.mark.parametrize("seed", [100, 101])
def test_it_solves_its_task(sim, seed: int) -> None:
    sim.reset(seed=seed)
    sim.expert.reset(sim)
    assert solve(sim)


def test_it_finds_back_from_a_shove(sim) -> None:
    rng = np.random.default_rng(0)
    sim.reset(seed=102)
    sim.expert.reset(sim)
    for _ in range(15):
        sim.step(sim.expert.act(sim))
    for _ in range(4):
        action = sim.expert.nudge(sim, rng)
        assert sim.action_space.contains(action.astype(np.float32))
        sim.step(action)
    sim.expert.reset(sim)
    assert solve(sim)
