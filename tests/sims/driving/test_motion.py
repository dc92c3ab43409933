"""When boxes meet, against polygons that are moved bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.sims.driving.motion import Motion, meeting
from fastloop.sims.driving.scene import Body

shapely = pytest.importorskip("shapely")


def at_random(rng, count):
    place, heading, velocity = rng.uniform(-12, 12, (count, 2)), rng.uniform(-4, 4, count), 8
    vx, vy = rng.uniform(-velocity, velocity, (2, count)) * rng.integers(0, 2, count)
    length, width = rng.uniform(0.3, 6, (2, count))
    return Motion(place[:, 0], place[:, 1], heading, vx, vy, length, width)


def test_a_motion_is_its_bodies():
    bodies = [Body("vehicle", 1, 2, 0.3, 4, 5, 4.5, 1.9), Body("other", -1, 0, 3.0, 0, 0, 1, 2)]
    motion = Motion.of(bodies)
    assert len(motion) == 2
    for row, body in enumerate(bodies):
        np.testing.assert_allclose(motion.corners[row], body.corners())
        assert motion.speed[row] == pytest.approx(body.speed)
    np.testing.assert_allclose(motion[1:].center, [[-1, 0]])
    assert len(Motion.of([])) == 0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_meetings_are_those_of_the_polygons(seed):
    rng = np.random.default_rng(seed)
    one, other = at_random(rng, 40), at_random(rng, 40)
    begins, ceases = meeting(one, other)
    for t in np.arange(-2, 2.01, 0.25):
        boxes = [shapely.polygons(m.corners + (m.velocity * t)[:, None, :]) for m in (one, other)]
        sure = np.minimum(np.abs(begins - t), np.abs(ceases - t)) > 1e-6
        touching = (begins <= t) & (t <= ceases)
        assert (touching == shapely.intersects(*boxes))[sure].all()


def test_boxes_side_by_side_at_one_velocity_never_meet_or_always_do():
    car = Motion.of([Body("vehicle", 0, 0, 0.5, 3, 1, 4, 2)] * 2)
    others = Motion.of(
        [Body("vehicle", 9, 0, 0.5, 3, 1, 4, 2), Body("vehicle", 1, 0, 0, 3, 1, 4, 2)]
    )
    begins, ceases = meeting(car, others)
    assert begins[0] > ceases[0]
    assert (begins[1], ceases[1]) == (-np.inf, np.inf)
