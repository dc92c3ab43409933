"""The Intelligent Driver Model as a planner: what it does is known for simple roads."""

import numpy as np
import pytest

from fastloop.policies.driving.idm import IDM
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec

T, HZ = 20, 4.0
ROAD = EnvSpec(
    "road",
    {
        "observation.ego_states": TensorSpec((16, 6)),
        "observation.route": TensorSpec((30, 2)),
        "observation.neighbors": TensorSpec((4, 10)),
    },
    ActionSpec(2, "waypoint", (-1e3, -1e3), (1e3, 1e3)),
    HZ,
    1,
    horizon=T,
)
STRAIGHT = np.stack([3.0 * np.arange(30), np.zeros(30)], axis=1)


def neighbor(x, y=0.0, speed=0.0, heading=0.0, length=4.5, width=1.9, side=0.0):
    velocity = speed * np.cos(heading), speed * np.sin(heading) + side
    return [x, y, np.cos(heading), np.sin(heading), *velocity, length, width, 0, 1]


def observed(speed=10.0, route=STRAIGHT, others=()):
    states = np.zeros((16, 6), np.float32)
    states[:, 2] = speed
    rows = np.zeros((4, 10), np.float32)
    rows[: len(others)] = np.reshape(others, (-1, 10))
    return {
        "observation.ego_states": states,
        "observation.route": np.asarray(route, np.float32),
        "observation.neighbors": rows,
    }


def drive(*observations, planner=None):
    planner = planner or IDM(ROAD)
    episodes = []
    for observation in observations:
        episode = EpisodeHistory(1)
        episode.observe(observation)
        episodes.append(episode)
    history = History.stack(episodes, [0])
    rng = Rng.for_envs(0, range(len(episodes)), [0] * len(episodes))
    return planner.plan(history, rng=rng).actions.numpy()


def speeds(plan):
    steps = np.diff(np.vstack([[0.0, 0.0], plan]), axis=0)
    return np.linalg.norm(steps, axis=1) * HZ


def test_on_a_free_road_it_comes_to_its_speed():
    slow, fast = drive(observed(5.0), observed(20.0))
    assert (np.diff(speeds(slow)) > -1e-6).all()
    assert 8 < speeds(slow)[-1] < 13.9
    assert 13.5 < speeds(fast)[-1] < 16
    np.testing.assert_allclose(slow[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("gap", [15.0, 25.0, 40.0])
def test_it_stops_behind_what_stands(gap):
    (plan,) = drive(observed(6.0, others=[neighbor(gap + 3.8 + 2.25)]))
    assert plan[-1, 0] < gap  # the front, 3.8 m ahead, has not reached the rear
    assert speeds(plan)[-1] < 6.0


def test_behind_somebody_as_fast_it_keeps_its_distance():
    (plan,) = drive(observed(10.0, others=[neighbor(3.8 + 2.25 + 20, speed=10.0)]))
    assert abs(speeds(plan)[-1] - 10) < 1.0


def test_who_is_beside_or_behind_is_no_reason_to_brake():
    free, beside, behind = drive(
        observed(), observed(others=[neighbor(20, 3.5)]), observed(others=[neighbor(-12, speed=15)])
    )
    np.testing.assert_array_equal(free, beside)
    np.testing.assert_array_equal(free, behind)


def test_who_will_cross_is_waited_for():
    crossing = neighbor(30.0, -6.0, heading=np.pi / 2, speed=2.0)
    (plan,) = drive(observed(10.0, others=[crossing]))
    assert speeds(plan).min() < 7


def test_it_is_slow_in_a_curve_and_stays_on_the_route():
    angle = np.linspace(0, 3.0 * 29 / 15, 30)
    route = 15 * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=1)
    (plan,) = drive(observed(8.0, route))
    assert speeds(plan).max() < 8.5  # sqrt(2 m/s^2 * 15 m) is 5.5
    assert speeds(plan)[-1] < 5.8
    np.testing.assert_allclose(np.hypot(plan[:, 0], plan[:, 1] - 15), 15, atol=0.3)


def test_it_comes_back_to_a_route_beside_it():
    (plan,) = drive(observed(10.0, STRAIGHT + np.array([0.0, 2.0])))
    assert 0 < plan[0, 1] < 1
    assert plan[-1, 1] == pytest.approx(2, abs=0.05)
    assert (np.diff(plan[:, 1]) > 0).all()


def test_without_a_route_it_goes_straight_on():
    (plan,) = drive(observed(10.0, np.zeros((30, 2))))
    np.testing.assert_allclose(plan[:, 1], 0, atol=1e-6)
    assert plan[-1, 0] > 40


def test_it_never_reverses_and_rows_do_not_mix():
    rng = np.random.default_rng(0)
    seen = [
        observed(
            rng.uniform(0, 15),
            np.cumsum(rng.normal([2.5, 0], [0.5, 0.8], (30, 2)), axis=0),
            [neighbor(*rng.uniform(-5, 40, 2), rng.uniform(0, 12), rng.uniform(-3, 3))],
        )
        for _ in range(12)
    ]
    together = drive(*seen)
    assert np.isfinite(together).all()
    for row, one in zip(together, seen, strict=True):
        np.testing.assert_array_equal(row, drive(one)[0])


def test_what_it_needs_is_named():
    blind = EnvSpec("blind", {}, ROAD.action, HZ, 1, horizon=T)
    with pytest.raises(SpecMismatchError, match=r"observation\.route.*blind offers nothing"):
        IDM(blind)
    with pytest.raises(SpecMismatchError, match="waypoints"):
        IDM(EnvSpec("arm", {}, ActionSpec(7, "joint_position", (0,) * 7, (1,) * 7), 20.0, 9))
