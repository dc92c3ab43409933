"""The tracker drives the bicycle along recorded and made-up paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.logs import scenarionet
from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.poses import Pose, to_vehicle
from fastloop.sims.driving.tracker import Tracker, place

DT, AXLE = 0.1, 1.3
BICYCLE = Bicycle(2.6, 0.7, 4.0, 8.0)
TRACKER = Tracker(2.6, 0.7, 4.0, 8.0, DT, rear_axle=AXLE)


def control(plan, times, *, at=(0.0, 0.0, 0.0), speed=0.0):
    return TRACKER.control(plan, times, BICYCLE.body([*at, speed], rear_axle=AXLE))


def drive(where, *, start, seconds, replan=5, hz=4.0, waypoints=20, noise=0.0):
    """States (N, 4) at 10 Hz of a vehicle whose planner knows where to be, `where(t)` (T, 2), and
    plans every `replan` ticks; steering angles (N - 1,)."""
    rng = np.random.default_rng(0)
    states, steers = [np.asarray(start, float)], []
    for tick in range(round(seconds / DT)):
        if tick % replan == 0:
            planned, pose = tick, Pose(*states[-1][:3])
            world = where(tick * DT + np.arange(1, waypoints + 1) / hz)
            plan = to_vehicle(world + rng.normal(0, noise, world.shape), pose)
        points, times = place(plan, pose, hz=hz, age_s=(tick - planned) * DT)
        controls = TRACKER.control(points, times, BICYCLE.body(states[-1], rear_axle=AXLE))
        steers.append(controls[0])
        states.append(BICYCLE.step(states[-1], controls, DT))
    return np.array(states), np.array(steers)


def straight(distance):
    def where(t):
        return np.stack([distance(np.asarray(t)), 0 * np.asarray(t)], -1)

    return where


def stopping(speed, brake):
    def distance(t):
        t = np.minimum(t, speed / brake)
        return speed * t - brake * t**2 / 2

    return straight(distance)


@pytest.fixture(scope="module")
def recorded(realdata):
    """Name, path (T, 2) and heading (T,) at 10 Hz, of the point that nuScenes records: the rear
    axle. After the last keyframe, the 191st row or later, positions are held."""
    logs = list(scenarionet.read(realdata / "nuscenes_mini_scenarionet"))
    egos = [(log.name, log.tracks[log.ego]) for log in logs]
    return [(name, e.position[:190, :2], np.unwrap(e.heading[:190])) for name, e in egos]


@pytest.mark.parametrize(
    ("hz", "waypoints", "replan", "noise", "aside"),
    [(4, 20, 5, 0, 0.15), (1, 5, 5, 0, 0.15), (4, 20, 20, 0, 0.15), (4, 20, 5, 0.1, 0.3)],
)
def test_recorded_drives_are_followed(recorded, hz, waypoints, replan, noise, aside):
    fastest, turns = 0.0, 0.0
    for name, path, heading in recorded:
        end = (path[-1] - path[-2]) / DT
        ticks = np.arange(len(path)) * DT

        def where(t, path=path, end=end, ticks=ticks):
            onward = np.maximum(t - ticks[-1], 0)[:, None] * end
            return onward + np.stack([np.interp(t, ticks, path[:, k]) for k in (0, 1)], -1)

        speed = np.hypot(*(path[1] - path[0])) / DT
        states, _ = drive(
            where, start=[*path[0], heading[0], speed], seconds=ticks[-1],
            hz=hz, waypoints=waypoints, replan=replan, noise=noise,
        )  # fmt: skip
        off = states[:, :2] - path[: len(states)]
        c, s = np.cos(heading[: len(states)]), np.sin(heading[: len(states)])
        assert np.abs(off[:, 1] * c - off[:, 0] * s).max() < aside, name
        assert np.abs(off[:, 0] * c + off[:, 1] * s).max() < 1.0, name
        fastest = max(fastest, states[:, 3].max())
        turns = max(turns, np.ptp(heading))
    assert fastest > 14  # these recordings are worth following
    assert turns > 2


@pytest.mark.parametrize(("speed", "brake"), [(2, 1), (5, 2), (10, 3), (15, 4)])
@pytest.mark.parametrize("replan", [1, 5, 20])
def test_it_stops_where_the_plan_stops(speed, brake, replan):
    states, _ = drive(stopping(speed, brake), start=[0, 0, 0, speed], seconds=12, replan=replan)
    assert states[-1, 3] == 0
    assert states[-1, 0] == pytest.approx(speed**2 / 2 / brake, abs=0.5)
    assert np.diff(states[:, 3]).min() > -1.3 * max(brake, 1.6) * DT  # as hard as was planned


@pytest.mark.parametrize("replan", [1, 5])
def test_a_standing_vehicle_starts(replan):
    where = straight(lambda t: t**2)
    states, _ = drive(where, start=[0, 0, 0, 0], seconds=3, replan=replan)
    assert states[-1] == pytest.approx([9, 0, 0, 6], abs=0.1)


@pytest.mark.parametrize("way", [0.0, -0.5], ids=["stands", "reverses"])
def test_a_plan_that_goes_nowhere_moves_nothing(way):
    where = straight(lambda t: way * t)
    states, _ = drive(where, start=[0, 0, 0, 0], seconds=20, noise=0.1)
    assert np.abs(states[-1]).max() < 0.1
    states, _ = drive(where, start=[0, 0, 0, 8], seconds=8, noise=0.1)
    assert states[-1, 3] == 0
    assert 3 < states[-1, 0] < 5
    assert abs(states[-1, 1]) < 0.1


def test_offsets_are_made_up_for():
    for offset in ([2, 0], [-2, 0], [0, 1], [0, -1]):
        states, _ = drive(straight(lambda t: 10 * t), start=[*offset, 0, 10], seconds=10)
        assert states[-1] == pytest.approx([100, 0, 0, 10], abs=0.01)
        assert np.abs(states[:, 1]).max() <= 1.0
        assert states[:, 3].max() < 13.1


def test_noise_hardly_shows():
    where = straight(lambda t: 10 * t)
    states, steers = drive(where, start=[0, 0, 0, 10], seconds=20, noise=0.1)
    assert np.abs(states[:, 1]).max() < 0.15
    assert np.abs(steers).max() < 0.06
    assert np.abs(np.diff(states[:, 3])).max() / DT < 1.5


def test_tight_turns():
    def circle(t, radius=6.0):
        angle = 3.0 * np.asarray(t) / radius
        return radius * np.stack([np.sin(angle), 1 - np.cos(angle)], -1)

    states, _ = drive(circle, start=[0, 0, 0, 3], seconds=12)
    assert np.abs(np.hypot(states[:, 0], states[:, 1] - 6) - 6).max() < 0.05

    def corner(t):
        way = 3.0 * np.asarray(t)
        return np.stack([np.minimum(way, 10), np.maximum(way - 10, 0)], -1)

    states, _ = drive(corner, start=[0, 0, 0, 3], seconds=8)
    # Tighter than the vehicle can turn: it goes wide, and comes back to the way behind it.
    assert states[-1, :3] == pytest.approx([10, 14, np.pi / 2], abs=0.6)
    assert states[:, 0].max() < 12


def test_the_place_in_the_scene_does_not_matter():
    """What is turned and moved as a whole is driven as before."""
    plan = np.array([[1.0, 0.1], [3, 0.5], [6, 1.5], [10, 3]])
    times = np.arange(1, 5) / 2 - 0.3
    expected = control(plan, times, speed=3.0)
    c, s = np.cos(2.0), np.sin(2.0)
    turned = plan @ [[c, s], [-s, c]] + [1e4, -1e4]
    assert control(turned, times, at=(1e4, -1e4, 2.0), speed=3.0) == pytest.approx(expected)
    steer, accel = control(plan * [1, -1], times, speed=3.0)
    assert (-steer, accel) == pytest.approx(expected)


def test_a_plan_is_left_off_at_its_end():
    """Up to its last waypoint it goes on at its speed, then the vehicle stops within reason."""
    where = straight(lambda t: 8 * t)
    states, _ = drive(where, start=[0, 0, 0, 8], seconds=12, replan=1000)
    assert states[50] == pytest.approx([40, 0, 0, 8], abs=0.01)
    assert states[-1, 3] == 0
    assert 48 < states[-1, 0] < 52


def test_a_single_waypoint():
    assert control([[5.0, 0.0]], [1.0]) == (0.0, 4.0)
    steer, _ = control([[5.0, 1.0]], [1.0], speed=4.0)
    assert 0 < steer < 0.7
    assert control([[-5.0, 0.0]], [1.0], speed=3.0)[1] == pytest.approx(-6.0)
    assert control([[5.0, 0.0]], [-1.0], speed=3.0) == (0.0, -3.0)


def test_waypoints_are_placed_by_the_pose_of_their_time():
    plan, times = place([[1.0, 0.0], [2.0, 1.0]], Pose(5.0, 5.0, np.pi / 2), hz=4, age_s=0.3)
    np.testing.assert_allclose(plan, [[5, 5], [5, 6], [4, 7]], atol=1e-12)
    np.testing.assert_allclose(times, [-0.3, -0.05, 0.2])


@settings(max_examples=200)
@given(
    points=st.lists(st.tuples(*[st.floats(-1000, 1000)] * 2), min_size=1, max_size=12),
    age=st.floats(0, 5), speed=st.floats(0, 30), heading=st.floats(-4, 4),
)  # fmt: skip
def test_any_plan_gives_a_control_within_the_limits(points, age, speed, heading):
    times = (np.arange(len(points)) + 1) / 4 - age
    steer, accel = control(points, times, at=(1.0, 2.0, heading), speed=speed)
    assert abs(steer) <= 0.7
    assert -8 <= accel <= 4
    assert speed + accel * DT >= -1e-9  # nothing reverses
    assert control(points, times, at=(1.0, 2.0, heading), speed=speed) == (steer, accel)
    normalized = TRACKER.normalized(steer, accel)
    assert max(map(abs, normalized)) <= 1
    assert normalized[0] * 0.7 == pytest.approx(steer)
    assert normalized[1] * (4 if accel > 0 else 8) == pytest.approx(accel)


@pytest.mark.parametrize(
    ("plan", "times"),
    [
        ([], []),
        ([[1.0, 2.0]], [1.0, 2.0]),
        ([[1.0, 2.0, 3.0]], [1.0]),
        ([[1.0, np.nan]], [1.0]),
        ([[1.0, 2.0], [2.0, 2.0]], [1.0, 1.0]),
    ],
)
def test_what_is_no_plan_is_refused(plan, times):
    with pytest.raises(ValueError, match="waypoints"):
        control(plan, times)
