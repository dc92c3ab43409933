"""Accelerations and jerks of motions whose derivatives are known."""

import numpy as np
import pytest

from fastloop.sims.driving.comfort import BOUNDS, comfort
from fastloop.sims.driving.motion import Motion

T = np.arange(0, 6, 0.1)


def motion(x, y, heading, vx, vy):
    ones = np.ones_like(T)
    return Motion(*(np.asarray(part) * ones for part in (x, y, heading, vx, vy, 4.0, 2.0)))


def test_a_circle_has_a_steady_pull_to_its_middle():
    speed, radius = 8.0, 20.0
    turn = T * speed / radius
    found = comfort(
        motion(
            radius * np.sin(turn), -radius * np.cos(turn), turn % (2 * np.pi) - np.pi + np.pi,
            speed * np.cos(turn), speed * np.sin(turn),
        ),
        0.1,
    )  # fmt: skip
    inner = slice(8, -8)
    np.testing.assert_allclose(found.lateral_acceleration[inner], speed**2 / radius, rtol=0.02)
    np.testing.assert_allclose(found.longitudinal_acceleration[inner], 0, atol=0.12)
    np.testing.assert_allclose(found.yaw_rate, speed / radius, rtol=1e-6)
    np.testing.assert_allclose(found.yaw_acceleration, 0, atol=1e-6)
    assert found.comfortable


def test_a_steady_jerk_is_found():
    speed = 2 + 0.2 * T**2  # a jerk of 0.4
    found = comfort(motion(0, 0, 0, speed, 0), 0.1)
    np.testing.assert_allclose(found.longitudinal_acceleration[10:-10], 0.4 * T[10:-10], atol=0.03)
    np.testing.assert_allclose(found.longitudinal_jerk[12:-12], 0.4, atol=1e-6)
    np.testing.assert_allclose(found.jerk[12:-12], 0.4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("longitudinal_acceleration", motion(0, 0, 0, 20 - 4.2 * T, 0)),
        ("longitudinal_acceleration", motion(0, 0, 0, 2.5 * T, 0)),
        ("lateral_acceleration", motion(0, 0, 0, 5, 5.0 * T)),
        ("yaw_rate", motion(0, 0, 1.0 * T, 0, 0)),
        ("yaw_acceleration", motion(0, 0, 1.0 * T**2 - 3 * T, 0, 0)),
        ("longitudinal_jerk", motion(0, 0, 0, 2.2 * (T - 3) ** 2, 0)),
        ("jerk", motion(0, 0, 0, 0, 4.5 * (T - 3) ** 2)),
    ],
)
def test_each_bound_is_kept_on_its_own(name, one):
    assert not comfort(one, 0.1).within()[name]
    assert set(comfort(one, 0.1).within()) == set(BOUNDS)


def test_three_moments_tell_nothing():
    assert comfort(motion(0, 0, 0, 100 * T, 0)[:3], 0.1).comfortable
