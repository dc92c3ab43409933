"""States in, motions out: numbers arrive where the messages say they are."""

import math

import numpy as np
import pytest

from fastloop.deploy.conversions.diagnostics import Level, Status, diagnostics
from fastloop.deploy.conversions.joints import arm_state
from fastloop.deploy.conversions.odometry import make_odometry, vehicle_state
from fastloop.deploy.conversions.trajectory import autoware_trajectory, joint_trajectory, path
from fastloop.deploy.messages import BadMessage, Messages, nanoseconds

pytest.importorskip("rosbags", reason="messages are of it (extra ros)")

MESSAGES = Messages()
TIMES = np.arange(6) * 0.5
RADIUS = 20.0


def curve():
    """A left turn at 4 m/s."""
    heading = 4.0 * TIMES / RADIUS
    return np.column_stack([
        RADIUS * np.sin(heading), RADIUS * (1 - np.cos(heading)), heading,
        np.full(6, 4.0), np.full(6, -0.5),
    ])  # fmt: skip


def sent(message):
    """It, as the other side sees it."""
    return MESSAGES.decode(message.__msgtype__, MESSAGES.encode(message))


@pytest.mark.parametrize("heading", [0.0, 1.0, -3.0, math.pi])
def test_a_vehicle_is_where_its_odometry_says(heading):
    message = make_odometry(MESSAGES, 5, np.array([1.0, -2.0, heading, 9.0]), yaw_rate=0.3)
    state = vehicle_state(sent(message), time=7.0, acceleration=0.5)
    assert state.time == 7.0
    np.testing.assert_allclose(state.point, [1, -2, heading, 9, 0.5], atol=1e-12)
    np.testing.assert_allclose(state.rate, [0.3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["position", "orientation", "speed", "rate"])
def test_odometry_that_is_not_finite_is_bad(where, value):
    message = make_odometry(MESSAGES, 5, np.zeros(4))
    pose, twist = message.pose.pose, message.twist.twist
    field = {
        "position": (pose.position, "y"), "orientation": (pose.orientation, "w"),
        "speed": (twist.linear, "x"), "rate": (twist.angular, "z"),
    }[where]  # fmt: skip
    setattr(*field, value)
    with pytest.raises(BadMessage, match="not finite"):
        vehicle_state(message, time=0.0)


def test_an_orientation_that_was_never_filled_in_is_bad():
    message = make_odometry(MESSAGES, 5, np.zeros(4))
    message.pose.pose.orientation.w = 0.0
    with pytest.raises(BadMessage, match="no unit quaternion"):
        vehicle_state(message, time=0.0)


def joints(names, positions, velocities=()):
    return MESSAGES.type("sensor_msgs/msg/JointState")(
        MESSAGES.header(0, ""), list(names), np.array(positions, float),
        np.array(velocities, float), np.zeros(0),
    )  # fmt: skip


def test_joints_come_in_the_order_that_is_asked():
    state = arm_state(sent(joints("cab", [3, 1, 2], [30, 10, 20])), ["a", "b"], time=1.0)
    assert state.point.tolist() == [1, 2]
    assert state.rate.tolist() == [10, 20]
    assert arm_state(joints("ab", [1, 2]), ["b"], time=1.0).rate.tolist() == [0]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (joints("ac", [1, 2]), "joints b must each be there once; there are a, c"),
        (joints("abb", [1, 2, 3]), "joints b must"),
        (joints("ab", [1]), "2 joints with 1 positions and 0 velocities"),
        (joints("ab", [1, 2], [1]), "and 1 velocities"),
        (joints("ab", [1, math.nan]), "not finite"),
        (joints("ab", [1, 2], [math.inf, 0]), "not finite"),
    ],
)
def test_joints_that_do_not_fit_are_named(message, says):
    with pytest.raises(BadMessage, match=says):
        arm_state(message, ["a", "b"], time=0.0)


def test_a_plan_as_autoware_has_it():
    message = sent(autoware_trajectory(MESSAGES, TIMES, curve(), 7, frame="map", wheelbase_m=2.5))
    assert message.header.frame_id == "map"
    assert nanoseconds(message.header.stamp) == 7
    times = [nanoseconds(point.time_from_start) for point in message.points]
    assert times == [round(t * 1e9) for t in TIMES]
    third = message.points[2]
    x, y, heading, speed, pull = curve()[2]
    assert (third.pose.position.x, third.pose.position.y) == (x, y)
    turn = third.pose.orientation
    assert 2 * math.atan2(turn.z, turn.w) == pytest.approx(heading)
    assert third.longitudinal_velocity_mps == pytest.approx(speed)
    assert third.acceleration_mps2 == pytest.approx(pull)
    assert third.heading_rate_rps == pytest.approx(4.0 / RADIUS)
    assert third.front_wheel_angle_rad == pytest.approx(math.atan(2.5 / RADIUS))


def test_standing_still_turns_no_wheel():
    points = curve()
    points[:, 3] = 0
    message = autoware_trajectory(MESSAGES, TIMES, points, 7, wheelbase_m=2.5)
    assert {point.front_wheel_angle_rad for point in message.points} == {0.0}


def test_the_fixed_version_is_filled_up():
    message = autoware_trajectory(Messages("fixed"), TIMES, curve(), 7)
    assert len(message.points) == 10_000
    assert message.points[-1] == message.points[5]


def test_a_plan_as_viewers_have_it():
    message = sent(path(MESSAGES, TIMES, curve(), 1_000, frame="odom"))
    assert [nanoseconds(pose.header.stamp) - 1_000 for pose in message.poses] == [
        round(t * 1e9) for t in TIMES
    ]
    assert {pose.header.frame_id for pose in message.poses} == {"odom"}
    assert message.poses[3].pose.position.x == curve()[3, 0]


def test_a_plan_as_arms_have_it():
    points = np.column_stack([TIMES * 2, 1 - TIMES])
    message = sent(joint_trajectory(MESSAGES, TIMES, points, 7, ["a", "b"]))
    assert message.joint_names == ["a", "b"]
    assert message.points[2].positions.tolist() == points[2].tolist()
    np.testing.assert_allclose(message.points[2].velocities, [2, -1])
    assert nanoseconds(message.points[2].time_from_start) == 1_000_000_000
    assert len(joint_trajectory(MESSAGES, TIMES[:1], points[:1], 7, "ab").points) == 1


@pytest.mark.parametrize("moments", [2, 3, 7])
def test_velocities_are_those_of_numpys_gradient(moments):
    rng = np.random.default_rng(moments)
    times, points = np.cumsum(rng.uniform(0.1, 1, moments)), rng.normal(size=(moments, 3))
    message = sent(joint_trajectory(MESSAGES, times, points, 7, ["a", "b", "c"]))
    found = [point.velocities for point in message.points]
    np.testing.assert_allclose(found, np.gradient(points, times, axis=0))


def test_what_a_node_says_of_itself():
    status = Status(
        "loop", Level.ERROR, "CUDA out of memory", {"lateness_p99_ms": 1.23456789, "n": 5}
    )
    (found,) = sent(diagnostics(MESSAGES, 7, [status])).status
    assert (found.name, found.level, found.message) == ("loop", 2, "CUDA out of memory")
    assert [(pair.key, pair.value) for pair in found.values] == [
        ("lateness_p99_ms", "1.23457"), ("n", "5"),
    ]  # fmt: skip
