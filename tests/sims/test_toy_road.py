"""The winding road on which planners are tried out."""

import numpy as np
import pytest

from fastloop.policies.load import load_policy
from fastloop.policies.session import Session
from fastloop.sims.driving.poses import Pose, to_vehicle
from fastloop.sims.toy_road import ToyRoad


def drive(sim, name, seed, late=0):
    """Figures of an episode whose plans come `late` ticks late, and whether it succeeded."""
    policy = load_policy(name, env=sim.env_spec)
    session = Session(policy)
    session.begin(0, seed)
    seen, _ = sim.reset(seed=seed)
    session.observe(0, {key: seen[key] for key in policy.spec.inputs})
    queue, ended, first = [], False, True
    while not ended:
        if not queue:
            actions, ticks = session.plan([0]).actions[0], 0 if first else late
            queue, first = [session.act(0) for _ in range(ticks)], False
            session.install(0, actions, late=ticks)
            while not session.due(0):
                queue.append(session.act(0))
        seen, _, terminated, truncated, info = sim.step(queue.pop(0).numpy())
        assert sim.observation_space.contains(seen)
        session.observe(0, {key: seen[key] for key in policy.spec.inputs})
        ended = terminated or truncated
    return info["figures"], info["is_success"]


@pytest.mark.parametrize("seed", range(3))
def test_who_follows_the_route_arrives(seed):
    sim = ToyRoad()
    figures, success = drive(sim, "idm", seed)
    assert success
    assert figures["route_completion"] > 0.95
    assert figures["off_route_m"] < 0.2
    figures, success = drive(sim, "constant_velocity", seed)
    assert not success
    assert figures["off_route_m"] > 0.5


def test_seeds_are_roads_and_moments_come_back():
    sim, other = ToyRoad(), ToyRoad()
    first, _ = sim.reset(seed=3)
    again, _ = other.reset(seed=3)
    elsewhere, _ = other.reset(seed=4)
    key = "observation.route"
    np.testing.assert_array_equal(first[key], again[key])
    assert np.abs(first[key] - elsewhere[key]).max() > 0.5
    action = np.append(0.0, np.stack([2.0 * np.arange(1, 21), np.zeros(20)], axis=1))
    for _ in range(5):
        sim.step(action)
    saved = sim.save()
    expected = sim.step(action)[0]
    sim.step(action)
    sim.restore(saved)
    seen = sim.step(action)[0]
    for name, value in expected.items():
        np.testing.assert_array_equal(seen[name], value)


@pytest.mark.parametrize("told", [True, False])
def test_a_plan_stands_where_it_was_made(told):
    """With its age it is followed; without it, it begins anew at every tick."""
    sim = ToyRoad()
    sim.reset(seed=0)
    x = 2.0 * np.arange(1, 21)
    waypoints = np.stack([x, 1.5 * (1 - np.cos(np.pi * np.minimum(x / 16, 1)))], axis=1)
    for tick in range(20):
        sim.step(np.append(tick / 10 if told else 0.0, waypoints))
    start, now = (Pose(*state[:3]) for state in (sim.states[0], sim.states[-1]))
    way = to_vehicle(np.array(now[:2]), start)
    assert (way == pytest.approx([16.0, 3.0], abs=0.5)) == told


def test_it_can_be_filmed():
    sim = ToyRoad()
    sim.reset(seed=0)
    picture = sim.render()
    assert picture.shape == (160, 160, 3)
    assert picture.dtype == np.uint8


def test_cameras_show_the_road():
    pytest.importorskip("cv2", reason="pictures are painted with OpenCV (extra data)")
    sim = ToyRoad(cameras=("front_left", "front"), image_size=(56, 84))
    seen, _ = sim.reset(seed=0)
    assert sim.observation_space.contains(seen)
    front = seen["observation.images.front"]
    assert front.shape == (3, 84, 56)
    lower = front[:, 60:].reshape(3, -1)
    assert len(np.unique(lower, axis=1).T) > 1, "road and land"
    later = sim.step(np.append(0.0, np.stack([2.0 * np.arange(1, 21), np.zeros(20)], axis=1)))[0]
    assert (later["observation.images.front"] != front).any()
    assert (seen["observation.images.front_left"] != front).any()
    with pytest.raises(ValueError, match="no camera 'rear'; have: front_left, front, front_right"):
        ToyRoad(cameras=["rear"])
