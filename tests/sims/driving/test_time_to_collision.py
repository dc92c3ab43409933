"""Time to collision, against a vehicle that is moved step by step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.sims.driving.collisions import Collision
from fastloop.sims.driving.lanes import LanePlace
from fastloop.sims.driving.motion import Motion, Traffic
from fastloop.sims.driving.time_to_collision import time_to_collision

shapely = pytest.importorskip("shapely")


def at_random(rng, count):
    x, y, vx, vy = rng.uniform([[-25], [-25], [-9], [-9]], [[25], [25], [9], [9]], (4, count))
    return Motion(x, y, rng.uniform(-4, 4, count), vx, vy, *rng.uniform(0.5, 5, (2, count)))


def busy(seed, moments=6, others=8):
    rng = np.random.default_rng(seed)
    ego = at_random(rng, moments)
    traffic = Traffic(
        motion=at_random(rng, moments * others),
        moment=np.repeat(np.arange(moments), others),
        who=np.tile(np.arange(others), moments),
        ids=tuple(map(str, range(others))),
        kinds=("vehicle",) * others,
    )
    place = LanePlace(
        np.zeros(moments, bool), rng.random(moments) < 0.5, np.zeros(moments), np.zeros(moments)
    )
    return ego, traffic, place, rng.random(moments) < 0.5


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_it_is_the_first_step_at_which_boxes_touch(seed):
    ego, traffic, place, within = busy(seed)
    found = time_to_collision(ego, traffic, place, (), within)
    for index in range(len(ego)):
        axle = ego.rear_axle[index]
        expected = np.inf
        for row in np.flatnonzero(traffic.moment == index):
            away = traffic.motion.center[row] - axle
            cos = away @ ego.along[index] / np.linalg.norm(away)
            beside = not within[index] or place.crossing[index]
            if not (cos > np.cos(np.deg2rad(30)) or (beside and cos >= np.cos(np.deg2rad(150)))):
                continue
            for step in range(1, 30):
                boxes = [
                    shapely.Polygon(m.corners[k] + m.velocity[k] * step / 10)
                    for m, k in ((ego, index), (traffic.motion, row))
                ]
                if boxes[0].intersects(boxes[1]):
                    expected = min(expected, step / 10)
                    break
        assert found[index] == pytest.approx(expected)


def test_who_was_hit_is_left_out_and_who_is_to_blame_has_no_time():
    ego, traffic, place, within = busy(3)
    before = time_to_collision(ego, traffic, place, (), within)
    hit = tuple(Collision(0, who, "vehicle", "rear", False) for who in traffic.ids)
    assert np.isinf(time_to_collision(ego, traffic, place, hit, within)).all()
    blamed = (Collision(2, "7", "vehicle", "front", True),)
    after = time_to_collision(ego, traffic, place, blamed, within)
    assert after[2] == 0
    np.testing.assert_array_equal(after[:2], before[:2])


def test_who_stands_runs_into_nobody():
    ego, traffic, place, within = busy(5)
    standing = Motion(ego.x, ego.y, ego.heading, 0 * ego.vx, 0 * ego.vy, ego.length, ego.width)
    assert np.isinf(time_to_collision(standing, traffic, place, (), within)).all()
