"""The bicycle against circles, stops and many small steps; poses there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.poses import Pose, rear_axle_pose, to_vehicle, to_world

STATES = arrays(np.float64, (5, 4), elements=st.floats(-50, 50)).map(
    lambda states: np.concatenate([states[:, :3], np.abs(states[:, 3:])], -1)
)
CONTROLS = arrays(np.float64, (5, 2), elements=st.floats(-10, 10))


def test_a_circle_closes():
    bicycle, steer = Bicycle(wheelbase=2.5), 0.3
    radius = 2.5 / np.tan(steer)
    around = 2 * np.pi * radius / 5.0
    state = np.array([1.0, 2.0, 0.5, 5.0])
    for _ in range(7):
        state = bicycle.step(state, [steer, 0.0], around / 7)
    np.testing.assert_allclose(state, [1, 2, 0.5 + 2 * np.pi, 5], atol=1e-12)


def test_it_brakes_to_a_stop_and_stays_there():
    bicycle = Bicycle(max_brake=4.0)
    stopped = bicycle.step([0, 0, 0, 10], [0, -9.0], 60.0)  # more than it can
    np.testing.assert_allclose(stopped, [12.5, 0, 0, 0])
    np.testing.assert_array_equal(bicycle.step(stopped, [0.3, -1], 1.0), stopped)


@given(STATES, CONTROLS)
def test_two_half_steps_are_one(states, controls):
    bicycle = Bicycle()
    halves = bicycle.step(bicycle.step(states, controls, 0.05), controls, 0.05)
    np.testing.assert_allclose(bicycle.step(states, controls, 0.1), halves, atol=1e-9)


@given(STATES, CONTROLS)
def test_vehicles_do_not_know_of_each_other(states, controls):
    bicycle = Bicycle()
    one_by_one = [bicycle.step(s, c, 0.1) for s, c in zip(states, controls, strict=True)]
    np.testing.assert_array_equal(bicycle.step(states, controls, 0.1), one_by_one)


@given(STATES, CONTROLS)
def test_limits_hold(states, controls):
    bicycle = Bicycle(max_steer=0.5, max_accel=3.0, max_brake=6.0)
    after = bicycle.step(states, controls, 0.1)
    change = (after - states)[:, 3]
    assert (after[:, 3] >= 0).all()
    assert (change <= 0.3 + 1e-9).all()
    assert (change >= -0.6 - 1e-9).all()
    assert (
        np.abs(after - states)[:, 2] <= 0.1 * (states[:, 3] + 0.3) * np.tan(0.5) / 2.6 + 1e-9
    ).all()


def test_its_body_has_the_rear_axle_where_it_is():
    state = [3.0, -1.0, 0.7, 4.0]
    body = Bicycle().body(state, rear_axle=1.4)
    assert rear_axle_pose(body, 1.4) == pytest.approx(state[:3])
    assert body.speed == pytest.approx(4.0)
    assert np.arctan2(body.vy, body.vx) == pytest.approx(0.7)


@given(arrays(np.float64, (4, 2), elements=st.floats(-100, 100)), st.floats(-10, 10))
def test_frames_there_and_back(points, heading):
    pose = Pose(5.0, -3.0, heading)
    np.testing.assert_allclose(to_vehicle(to_world(points, pose), pose), points, atol=1e-9)


def test_a_vehicle_looks_along_x():
    pose = Pose(1.0, 1.0, np.pi / 2)
    np.testing.assert_allclose(to_vehicle(np.array([[1.0, 3.0]]), pose), [[2, 0]], atol=1e-12)
    np.testing.assert_allclose(to_vehicle(np.array([[0.0, 1.0]]), pose), [[0, 1]], atol=1e-12)
