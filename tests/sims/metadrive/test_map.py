"""Made-up roads: what is on them, how they are driven, and equal episodes."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import shapely

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.sims.driving.route import Route, resampled  # noqa: E402
from fastloop.sims.metadrive.map import MetaDriveMap  # noqa: E402

FRESH = """
import runpy, sys
from fastloop.sims.metadrive.map import MetaDriveMap
here = runpy.run_path(sys.argv[1])
print(here["digest"](MetaDriveMap(**here["CROWDED"]), 5))
"""
CROWDED = {"blocks": "SCX", "traffic_density": 0.3, "accident_prob": 0.8}


@pytest.fixture(scope="module")
def sim():
    made = MetaDriveMap(**CROWDED)
    yield made
    made.close()


def along(observation, speed):
    """A plan that follows the route."""
    route = np.vstack([[0.0, 0.0], observation["observation.route"][2:]])
    stations = np.append(0.0, np.cumsum(np.hypot(*np.diff(route, axis=0).T)))
    due = speed * np.arange(1, 21) / 4
    points = [np.interp(due, stations, route[:, axis]) for axis in (0, 1)]
    return np.append(0.0, np.stack(points, axis=1))


def digest(sim, seed, ticks=60):
    """Of everybody's way, to the last bit."""
    observation, _ = sim.reset(seed=seed)
    for _ in range(ticks):
        observation, *_ = sim.step(along(observation, 6.0))
    hashed = hashlib.sha256()
    for moment in sim.moments:
        for key, body in {"": moment.ego, **moment.others}.items():
            hashed.update(f"{key} {body}".encode())
    return hashed.hexdigest()


def test_the_route_leads_to_the_end_of_an_empty_road():
    sim = MetaDriveMap(blocks="SC", traffic_density=0.0)
    observation, _ = sim.reset(seed=1)
    assert sim.observation_space.contains(observation)
    while True:
        observation, _, terminated, truncated, info = sim.step(along(observation, 8.0))
        if terminated or truncated:
            break
    assert info["is_success"]
    assert info["figures"]["drivable_area"] == 1
    assert info["route_completion"] > 0.95
    sim.close()


def test_equal_seeds_are_equal_episodes_here_and_elsewhere(sim):
    first, other = digest(sim, 5), digest(sim, 6)
    assert first == digest(sim, 5) != other
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, __file__],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert fresh.stdout.split() == [first]
    assert fresh.stderr == ""


def test_traffic_and_accidents_are_there(sim):
    sim.reset(seed=5)
    kinds = [body.kind for body in sim.moments[0].others.values()]
    assert kinds.count("vehicle") > 3
    empty = MetaDriveMap(blocks="S", traffic_density=0.0)
    empty.reset(seed=5)
    assert not empty.moments[0].others
    empty.close()


def test_restored_moments_go_on_exactly(sim):
    observation, _ = sim.reset(seed=5)
    for _ in range(15):
        observation, *_ = sim.step(along(observation, 6.0))
    state = sim.save()
    action = along(observation, 6.0)
    expected = sim.step(action)[0]
    sim.reset(seed=6)
    sim.restore(state)
    for key, value in sim.step(action)[0].items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    "arguments", [{"blocks": 0}, {"blocks": ""}, {"traffic_density": 2}, {"accident_prob": -1}]
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MetaDriveMap(**arguments)


def test_the_route_never_jumps_and_stays_on_the_road():
    sim = MetaDriveMap(blocks=4, traffic_density=0.0)
    for seed in (1, 3, 5, 7):  # with ramps, where the number of lanes changes
        sim.reset(seed=10_000 + seed)
        route = resampled(sim.surroundings.route, int(Route(sim.surroundings.route).length / 2))
        headings = np.unwrap(np.arctan2(*np.diff(route, axis=0).T[::-1]))
        assert np.abs(np.diff(headings)).max() < np.radians(15)
        road = shapely.union_all(
            [shapely.Polygon(p).buffer(0.05) for p in sim.surroundings.drivable]
        )
        assert shapely.LineString(route).difference(road).length == 0
    sim.close()


def test_others_take_one_of_their_possible_ways():
    sim = MetaDriveMap(blocks="X", traffic_density=0.3)
    observation, _ = sim.reset(seed=5)
    branched = 0
    for _ in range(6):
        for _ in range(10):
            observation, *_ = sim.step(along(observation, 5.0))
        possible, before = sim.possible_ways(), sim.moments[-1].others
        assert set(possible) <= set(before)
        for _ in range(10):
            observation, *_ = sim.step(along(observation, 5.0))
        for key, ways in possible.items():
            branched += len(ways) > 1
            if key in (then := sim.moments[-1].others) and then[key].speed > 3:
                place = shapely.Point(then[key].x, then[key].y)
                assert (
                    min(shapely.LineString(way).distance(place) for way in ways) < 4.0
                )  # or the lane beside
    assert branched > 3
    sim.close()
