"""Observations of motions that are known in closed form, and of small made-up surroundings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.scene import Body, Moment, Surroundings

AXLE = 1.4
LEFT_TURN = np.array([[0.0, 0], [50, 0], [50, 80]])


def surroundings(route=LEFT_TURN, lanes=None):
    return Surroundings((), lanes or {}, (), (), (), np.asarray(route, float))


def vehicle(x, y, heading, speed, **other):
    """With its rear axle there."""
    along = np.array([np.cos(heading), np.sin(heading)])
    size = {"kind": "vehicle", "length": 4.5, "width": 1.9} | other
    return Body(
        x=x + AXLE * along[0], y=y + AXLE * along[1], heading=heading, vx=speed * along[0],
        vy=speed * along[1], **size,
    )  # fmt: skip


def observed(motion, seconds, *, others=None, **options):
    """The last observation of `motion(t)` -> (x, y, heading, speed), seen from 0 on at 10 Hz."""
    observer = Observer(surroundings(**options), rear_axle=AXLE)
    for tick in range(round(seconds * 10) + 1):
        now = observer.see(Moment(tick / 10, vehicle(*motion(tick / 10)), others or {}))
    for key, spec in observer.specs().items():
        assert (now[key].shape, str(now[key].dtype)) == (spec.shape, spec.dtype), key
        assert np.isfinite(now[key]).all()
        assert spec.low <= now[key].min()
        assert now[key].max() <= spec.high
    return now


def circle(t, speed=6.0, rate=0.3):
    radius, angle = speed / rate, rate * t + 1.0
    return (radius * np.sin(angle), -radius * np.cos(angle), angle, speed)


def faster(t):
    return (3.0 * t + t**2, 5.0, 0.0, 3.0 + 2 * t)


def test_a_circle_of_the_past():
    states = observed(circle, 6.0)["observation.ego_states"]
    t = np.arange(-15, 1) / 4
    angle, velocity = 0.3 * t, 6 * np.stack([np.cos(0.3 * t), np.sin(0.3 * t)], -1)
    np.testing.assert_allclose(states[:, 0], 20 * np.sin(angle), atol=3e-3)
    np.testing.assert_allclose(states[:, 1], 20 * (1 - np.cos(angle)), atol=3e-3)
    np.testing.assert_allclose(states[:, 2:4], velocity, atol=2e-3)
    toward = 1.8 * np.stack([-np.sin(angle - 0.0375), np.cos(angle - 0.0375)], -1)  # since 0.25 s
    np.testing.assert_allclose(states[:, 4:], toward, atol=1e-2)


def test_speeding_up_is_exact():
    states = observed(faster, 5.0)["observation.ego_states"]
    t = 5 + np.arange(-15, 1) / 4
    np.testing.assert_allclose(states[:, 0], 3 * t + t**2 - 40, atol=3e-3)  # between two ticks
    np.testing.assert_allclose(states[:, 2], 3 + 2 * t, atol=1e-5)
    np.testing.assert_allclose(states[:, 4], 2, atol=1e-4)
    np.testing.assert_allclose(states[:, [1, 3, 5]], 0, atol=1e-5)


def test_before_the_start_it_came_straight_at_its_speed():
    states = observed(lambda t: (6 * t, 0, 0.5, 6.0), 0.0)["observation.ego_states"]
    t = np.arange(-15, 1) / 4
    zero = 0 * t
    expected = np.stack([6 * t, zero, zero + 6, zero, zero, zero], -1)
    np.testing.assert_allclose(states, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "route", "speed", "intent"),
    [
        (0, LEFT_TURN, 5, 1),  # the junction is 50 m away
        (0, LEFT_TURN, 15, 2),  # but soon at this speed
        (35, LEFT_TURN, 5, 2),
        (35, LEFT_TURN * [1, -1], 5, 3),
        (20, [[0, 0], [200, 0]], 15, 1),
        (20, np.empty((0, 2)), 5, 0),
        (20, [[0, 0]], 5, 0),
    ],
)
def test_the_intent_is_the_routes(x, route, speed, intent):
    seen = observed(lambda t: (x, 0, 0, speed), 0.0, route=route)
    assert seen["observation.intent"] == intent
    assert seen["observation.intent"].dtype == np.int64


def test_a_turn_is_the_intent_until_it_is_over():
    here = {y: observed(lambda t, y=y: (50, y, np.pi / 2, 5), 0.0) for y in (2.0, 8.0)}
    assert [int(seen["observation.intent"]) for seen in here.values()] == [2, 1]


def test_the_route_goes_on_from_beside_the_vehicle():
    route = observed(lambda t: (41, 1.0, 0, 5), 0.0)["observation.route"]
    np.testing.assert_allclose(route[:4], [[0, -1], [3, -1], [6, -1], [9, -1]], atol=1e-5)
    np.testing.assert_allclose(route[-1], [9, 77], atol=1e-5)
    later = observed(lambda t: (50, 60, np.pi / 2, 5), 0.0)["observation.route"]
    np.testing.assert_allclose(later[:, 0], np.minimum(3 * np.arange(30), 20), atol=1e-5)
    none = observed(lambda t: (41, 1.0, 0, 5), 0.0, route=np.empty((0, 2)))["observation.route"]
    np.testing.assert_array_equal(none, 0)


def test_a_route_that_comes_back_is_read_the_way_the_vehicle_drives():
    hairpin = [[0, 0], [100, 0], [100, 3], [0, 3]]
    there = observed(lambda t: (50, 1.6, 0, 5), 0.0, route=hairpin)["observation.route"]
    np.testing.assert_allclose(there[1], [3, -1.6], atol=1e-4)
    back = observed(lambda t: (50, 1.4, np.pi, 5), 0.0, route=hairpin)["observation.route"]
    np.testing.assert_allclose(back[1], [3, -1.6], atol=1e-4)


def test_neighbors_come_nearest_first():
    others = {
        "far": Body("pedestrian", 10, 30, 0, 0, 1, 0.6, 0.7),
        "near": Body("cyclist", 10, 4, np.pi, -3, 0, 1.8, 0.6),
        "gone": Body("vehicle", 10, 400, 0, 0, 0, 4.5, 1.9),
    }
    seen = observed(lambda t: (10, 0, np.pi / 2, 5), 0.0, others=others)["observation.neighbors"]
    expected = [[4, 0, 0, 1, 0, 3, 1.8, 0.6, 2, 1], [30, 0, 0, -1, 1, 0, 0.6, 0.7, 1, 1]]
    np.testing.assert_allclose(seen[:2], expected, atol=1e-5)
    np.testing.assert_array_equal(seen[2:], 0)


def test_more_neighbors_than_rows():
    others = {str(k): Body("vehicle", k, 0, 0, 0, 0, 4, 2) for k in range(40, 0, -1)}
    seen = observed(lambda t: (0, 0, 0, 5), 0.0, others=others)["observation.neighbors"]
    np.testing.assert_array_equal(seen[:, 0], np.arange(1, 33))


def test_the_map_in_pieces():
    lanes = {"far": np.array([[0.0, 60], [76, 60]]), "near": np.array([[0.0, 4], [30, 4]])}
    seen = observed(lambda t: (2, 4, 0, 5), 0.0, lanes=lanes, route=[[0, 0], [38, 0]])
    pieces = seen["observation.map"]
    assert pieces[:, 0, 5].sum() == 4  # the far lane is two
    near, route, far = pieces[:3]
    np.testing.assert_allclose(near[:, 0], np.linspace(-2, 28, 20), atol=1e-5)
    np.testing.assert_allclose(near[:, 1:5], np.tile([0, 1, 0, 0], (20, 1)), atol=1e-5)
    np.testing.assert_allclose(route[:, 0], np.linspace(-2, 36, 20), atol=1e-5)
    np.testing.assert_array_equal(route[:, 4], 1)
    np.testing.assert_allclose(far[[0, -1], :2], [[-2, 56], [36, 56]], atol=1e-5)
    np.testing.assert_array_equal(pieces[4:], 0)


def test_a_map_of_nothing():
    lanes = {"point": np.zeros((1, 2)), "twice": np.ones((2, 2)), "none": np.empty((0, 2))}
    seen = observed(lambda t: (0, 0, 0, 5), 0.5, lanes=lanes, route=np.empty((0, 2)))
    np.testing.assert_array_equal(seen["observation.map"], 0)


@settings(max_examples=30)
@given(st.floats(-3, 3), st.floats(-1e3, 1e3), st.floats(0.1, 20), st.integers(0, 70))
def test_the_place_in_the_scene_does_not_matter(angle, away, speed, ticks):
    """What is turned and moved as a whole is seen as before."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])

    def seen(move):
        def there(points):
            return np.asarray(points, float) @ turn + away if move else np.asarray(points, float)

        world = surroundings(there(LEFT_TURN), {"lane": there([[0, 3], [60, 3]])})
        observer = Observer(world, rear_axle=AXLE)
        for tick in range(ticks + 1):
            x, y, heading, v = circle(tick / 10, speed)
            ego = vehicle(*there([x, y]), heading + angle * move, v)
            other = vehicle(*there([x + 5, y + 1]), angle * move, 2.0)
            now = observer.see(Moment(tick / 10, ego, {"other": other}))
        return now

    expected, moved = seen(False), seen(True)
    for key in ("observation.ego_states", "observation.neighbors", "observation.map"):
        np.testing.assert_allclose(moved[key], expected[key], atol=1e-2, err_msg=key)


def test_going_back_is_exact():
    def moments():
        return [Moment(k / 10, vehicle(*circle(k / 10)), {}) for k in range(80)]

    observer = Observer(surroundings(), rear_axle=AXLE)
    seen = [observer.see(moment) for moment in moments()[:50]]
    saved = observer.save()
    first = [observer.see(moment) for moment in moments()[50:]]
    other = Observer(surroundings(), rear_axle=AXLE)
    for again in (observer, other):
        again.restore(saved)
        for before, after in zip(
            first, [again.see(moment) for moment in moments()[50:]], strict=True
        ):
            for key, value in before.items():
                np.testing.assert_array_equal(value, after[key])
    assert len(seen) == 50


def test_its_memory_does_not_grow():
    observer = Observer(surroundings(), rear_axle=AXLE)
    for tick in range(200):
        observer.see(Moment(tick / 10, vehicle(*circle(tick / 10)), {}))
    assert len(observer.save()) <= 42


def test_moments_come_in_order():
    observer = Observer(surroundings(), rear_axle=AXLE)
    moment = Moment(1.0, vehicle(0, 0, 0, 5), {})
    observer.see(moment)
    with pytest.raises(ValueError, match="in their order"):
        observer.see(moment)
