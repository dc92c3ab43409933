"""The expert of made-up roads: it arrives, plans wholly, keeps clear, and recovers."""

from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.sims.config import SimConfig  # noqa: E402
from fastloop.sims.demos import Recipe, demonstrate  # noqa: E402
from fastloop.sims.experts.road import RoadExpert  # noqa: E402
from fastloop.sims.metadrive.map import MetaDriveMap  # noqa: E402

SIM = {"blocks": "X", "traffic_density": 0.2}


@pytest.fixture(scope="module")
def sim():
    made = MetaDriveMap(**SIM)
    yield made
    made.close()


def recipe(**changes):
    return Recipe(SimConfig("fastloop.sims.metadrive.map.MetaDriveMap", SIM), {}, **changes)


def driven(sim, expert, seed):
    sim.reset(seed=seed)
    expert.reset(sim)
    while True:
        *_, terminated, truncated, info = sim.step(expert.act(sim))
        if terminated or truncated:
            return info


def test_it_arrives_where_it_has_to_give_way(sim):
    assert all(driven(sim, RoadExpert(), seed)["is_success"] for seed in (1, 2, 4))


def test_a_demonstration_holds_the_moments_at_which_a_plan_was_made(sim):
    (segment,) = demonstrate(sim, RoadExpert(replan=5), 1, recipe())
    assert segment.success
    assert (segment.actions[:, 0] == 0).all()
    assert segment.actions.shape[1] == 41
    ticks = len(sim.moments) - 1
    assert len(segment.actions) == len(segment.rewards) == -(-ticks // 5)
    x = segment.observations["observation.ego_states"][:, -1, 2]
    assert x[0] == pytest.approx(0.0, abs=0.1)  # the first observation is of the start
    assert x.max() > 5


def test_disturbances_split_it_and_the_expert_comes_back(sim):
    strayed = RoadExpert(shift=4.0)
    segments = demonstrate(sim, strayed, 2, recipe(disturb=1.0, bursts=4, burst_every=20))
    assert 2 <= len(segments) <= 5
    offsets = [abs(s.observations["observation.route"][0, 0, 1]) for s in segments[1:]]
    assert max(offsets) > 0.3  # it was led off its way


def test_noise_on_plans_is_refused(sim):
    with pytest.raises(ValueError, match="noise=0"):
        demonstrate(sim, RoadExpert(), 1, recipe(disturb=1.0, noise=0.1))


def test_of_plans_that_touch_somebody_it_takes_the_one_that_does_so_last(sim):
    sim.reset(seed=1)
    expert = RoadExpert()
    expert.reset(sim)
    ego = sim.moments[-1].ego
    times = expert._times
    wall = np.zeros((1, len(times), 5))
    wall[0] = [
        ego.x + 12 * np.cos(ego.heading),
        ego.y + 12 * np.sin(ego.heading),
        ego.heading,
        4,
        8,
    ]
    straight = np.stack([8.0 * times, np.zeros(len(times))], -1)
    touched = expert._touched(sim, straight, wall)
    reach = 12 - 2 - ego.length / 2
    assert 0 < times[touched] * 8.0 < reach + 2
    assert expert._touched(sim, straight / 100, wall) == len(times)
    assert expert._touched(sim, straight, wall[:0]) == len(times)
