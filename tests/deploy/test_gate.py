"""The plan gate: what is too much for a vehicle or an arm, in words; bodies and their stops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.arm import Arm
from fastloop.deploy.gate import ArmLimits, VehicleLimits, arm_faults, vehicle_faults
from fastloop.deploy.motion import ACCELERATION, HEADING, SPEED, Motion, State, X, Y
from fastloop.deploy.vehicle import Vehicle

LIMITS = VehicleLimits()
TIMES = np.arange(11) * 0.25


def straight(speed=8.0):
    """Along x."""
    return Motion(TIMES, np.column_stack([speed * TIMES, *np.zeros((2, 11)), 0 * TIMES + speed,
                                          0 * TIMES]))  # fmt: skip


def changed(column, values):
    motion = straight()
    motion.points[:, column] = values
    return motion


@pytest.mark.parametrize(
    ("motion", "words"),
    [
        (straight(21.0), "speed 21 m/s, at most 20"),
        (straight(20.004), "speed 20.004 m/s, at most 20"),
        (straight(-1.0), "speed backward 1 m/s"),
        (changed(ACCELERATION, 4.5), "acceleration 4.5 m/s^2, at most 4"),
        (changed(ACCELERATION, -9.0), "braking 9 m/s^2, at most 8"),
        (changed(ACCELERATION, [3.0, -8.0] * 5 + [3.0]), "jerk 44 m/s^3, at most 40"),
        (changed(HEADING, 0.6 * np.arange(11)), "curvature 0.3 1/m, at most 0.25"),
        (changed(HEADING, 0.2 * np.arange(11)), "lateral acceleration 6.4 m/s^2, at most 5"),
        (changed(Y, math.nan), "not finite"),
        (Motion(TIMES[::-1], straight().points), "times that do not rise"),
        (Motion(TIMES[:1], straight().points[:1]), "need two or more"),
    ],
)
def test_a_vehicle_must_not(motion, words):
    assert any(words in fault for fault in vehicle_faults(motion, LIMITS))


def test_a_vehicle_may():
    assert vehicle_faults(straight(), LIMITS) == []


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[0, 0], [0, 2.5]], "joint 1 0.5 rad above 2"),
        ([[0, 0], [-2.25, 0]], "joint 0 0.25 rad below -2"),
        ([[0, 0], [0, 0.9]], "joint velocity 9 rad/s, at most 3"),
        ([[0, 0], [0, 0.2], [0, 0.0]], "joint acceleration 40 rad/s^2, at most 30"),
    ],
)
def test_an_arm_must_not(points, words):
    limits = ArmLimits(low=(-2, -2), high=(2, 2), acceleration=30)
    motion = Motion(0.1 * np.arange(len(points)), np.array(points, float))
    assert words in arm_faults(motion, limits)


def test_waypoints_are_seen_from_the_vehicle():
    """At (10, 20), heading up: 8 m ahead is at (10, 28)."""
    state = State(5.0, np.array([10.0, 20.0, math.pi / 2, 8.0, 0.0]), np.zeros(1))
    ahead = np.column_stack([8 * np.arange(1, 5), np.zeros(4)]).ravel()
    motion = Vehicle(1.0).motion(np.append(0.0, ahead)[None], state=state, time=5.1, period_s=0.1)
    assert np.allclose(motion.times, 5 + np.arange(5))
    assert np.allclose(motion.points[:, [X, Y]], [[10, 20 + 8 * k] for k in range(5)])
    assert np.allclose(motion.points[:, HEADING], math.pi / 2)
    assert np.allclose(motion.points[:, SPEED], 8.0)


def test_waypoints_that_tremble_have_no_direction():
    state = State(0.0, np.zeros(5), np.zeros(1))
    noise = 0.05 * np.random.default_rng(0).normal(size=8)
    motion = Vehicle(4.0).motion(np.append(0.0, noise)[None], state=state, time=0, period_s=0.1)
    assert (motion.points[:, HEADING] == 0).all()


@given(st.floats(0, 20), st.floats(-3, 2), st.floats(-0.05, 0.05), st.floats(0, 2.4))
def test_stops_stay_on_the_path_and_end_at_rest(speed, pull, bend, t):
    heading = bend * speed * TIMES
    x = np.concatenate([[0], np.cumsum(0.25 * speed * np.cos(heading[1:]))])
    y = np.concatenate([[0], np.cumsum(0.25 * speed * np.sin(heading[1:]))])
    motion = Motion(TIMES, np.column_stack([x, y, heading, 0 * x + speed, 0 * x + pull]))
    vehicle = Vehicle(4.0)
    stop = vehicle.comfort_stop(motion, t)
    assert stop.times[0] == t
    assert np.allclose(stop.points[0, [X, Y]], motion.at(t)[[X, Y]], atol=1e-4)
    assert stop.points[-1, SPEED] == 0
    assert np.isfinite(stop.points).all()
    assert stop.points[:, ACCELERATION].min() >= min(pull, -LIMITS.hard_deceleration) - 1e-6
    hard = vehicle.hard_stop(State(t, motion.at(t), np.zeros(1)), t, motion)
    assert hard.points[-1, SPEED] == 0
    assert hard.end <= stop.end + 0.11


def test_a_plan_may_be_followed_until_its_rest_is_a_stop():
    vehicle = Vehicle(4.0)
    motion = straight(4.0)
    left = vehicle.leave_by(motion)
    profile = vehicle._profile(motion.at(left))
    assert motion.points[-1, X] - motion.at(left)[X] >= profile.distance
    assert motion.points[-1, X] - motion.at(left + 0.25)[X] < profile.distance


def test_a_heading_once_round_is_the_same():
    turned = changed(HEADING, 2 * math.pi)
    state = State(0.0, straight().points[0], np.zeros(1))
    assert Vehicle(4.0).apart(turned, state, 0.0) == ""
    stop = Vehicle(4.0).hard_stop(state, 0.0, turned)
    assert np.allclose(np.remainder(stop.points[:, HEADING] + 1, 2 * math.pi), 1)


def test_an_arm_that_moves_runs_out_and_stays_inside():
    arm = Arm(2, ArmLimits(low=(-1, -1), high=(1, 1), ramp_s=0.4))
    hold = arm.hard_stop(State(0.0, np.array([0.95, 0.0]), np.array([2.0, -1.0])), 3.0, None)
    assert hold.times[0] == 3.0
    assert hold.points[:, 0].max() <= 1.0
    assert hold.points[-1, 1] == pytest.approx(-0.2)
    steps = np.abs(np.diff(hold.points[:, 1]))
    assert (np.diff(steps) <= 1e-12).all()


def planned(places, **state):
    """Of a `Vehicle` of 4 waypoints a second, from the origin."""
    point = np.array([0.0, 0.0, 0.0, state.get("speed", 0.0), 0.0])
    actions = np.concatenate([[0.0], np.ravel(places)])[None]
    return Vehicle(4.0).motion(actions, state=State(0.0, point, np.zeros(1)), time=0, period_s=0.1)


def test_who_rolls_backward_slowly_does_not_go_forward():
    motion = planned([(-0.1 * k, 0.0) for k in range(1, 21)])
    assert (motion.points[2:, SPEED] < -0.3).all()
    assert (motion.points[:, HEADING] == 0).all()
    faster = planned([(-0.15 * k, 0.0) for k in range(1, 21)])
    assert vehicle_faults(faster, LIMITS) == ["speed backward 0.6 m/s, at most 0.5"]


def test_a_slow_turn_turns():
    """0.6 m/s: steps of 0.15 m, which have no direction each by itself."""
    angles = 0.15 * np.arange(1, 21) / 5.0
    motion = planned(5.0 * np.column_stack([np.sin(angles), 1 - np.cos(angles)]), speed=0.6)
    assert np.allclose(motion.points[1:, HEADING], angles, atol=0.07)


def test_who_stands_and_trembles_keeps_its_heading():
    places = np.random.default_rng(0).uniform(-0.05, 0.05, (20, 2))
    assert (planned(places).points[:, HEADING] == 0).all()


@pytest.mark.parametrize("ahead", [0.0, 0.7, 1.2, 50.0])
def test_a_hard_stop_never_goes_back(ahead):
    along = straight(2.0)
    state = State(0.0, np.array([ahead, 0.1, 0.0, 2.0, 0.0]), np.zeros(1))
    stop = Vehicle(4.0).hard_stop(state, 0.0, along)
    assert stop.points[0, X] == ahead
    assert (np.diff(stop.points[:, X]) >= 0).all()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (VehicleLimits, "speed", math.nan),
        (VehicleLimits, "lateral", "5"),
        (VehicleLimits, "hard_jerk", 0.0),
        (VehicleLimits, "stop_deceleration", math.inf),
        (ArmLimits, "ramp_s", 0),
        (ArmLimits, "velocity", -1.0),
    ],
)
def test_limits_that_limit_nothing_or_cannot_be_computed_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"limits.{name} must be a number above 0, got {value!r}"):
        kind(**{name: value})


def test_an_arm_has_a_bound_for_every_joint():
    with pytest.raises(ValueError, match=r"limits\.high has 1 numbers for 2 joints"):
        Arm(2, ArmLimits(high=(1.0,)))
    with pytest.raises(ValueError, match=r"limits\.low must be numbers"):
        ArmLimits(low=(math.nan,))
