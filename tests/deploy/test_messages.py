"""Types, their hashes, and a codec that says what is wrong with bytes from elsewhere."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.messages import BadMessage, Messages, nanoseconds

pytest.importorskip("rosbags", reason="messages are of it (extra ros)")

TRAJECTORY = "autoware_planning_msgs/msg/Trajectory"
MESSAGES = Messages()


def odometry(frame_id="map"):
    t = MESSAGES.type
    vector = t("geometry_msgs/msg/Vector3")
    pose = t("geometry_msgs/msg/Pose")(
        position=t("geometry_msgs/msg/Point")(1.0, 2.0, 3.0),
        orientation=t("geometry_msgs/msg/Quaternion")(0.0, 0.0, 0.0, 1.0),
    )
    twist = t("geometry_msgs/msg/Twist")(vector(9.0, 0.0, 0.0), vector(0.0, 0.0, 0.1))
    return t("nav_msgs/msg/Odometry")(
        header=MESSAGES.header(1_700_000_000_123_456_789, frame_id),
        child_frame_id="base_link",
        pose=t("geometry_msgs/msg/PoseWithCovariance")(pose, np.zeros(36)),
        twist=t("geometry_msgs/msg/TwistWithCovariance")(twist, np.arange(36.0)),
    )


@pytest.mark.parametrize(
    ("name", "digest"),
    [  # as printed by ROS 2 itself
        ("std_msgs/msg/String", "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"),
        (TRAJECTORY, "8259168af0abd0d3fa8297048f83aae4dad0955bd2d4e0904bcdc4f6f99a61b2"),
    ],
)
def test_hashes_are_those_of_ros(name, digest):
    assert MESSAGES.hash(name) == f"RIHS01_{digest}"


def test_the_versions_of_autoware_differ_in_their_hash():
    fixed = Messages("fixed")
    assert fixed.hash(TRAJECTORY) != MESSAGES.hash(TRAJECTORY)
    assert "TrajectoryPoint[10000] points" in fixed.definition(TRAJECTORY)
    with pytest.raises(ValueError, match="unbounded, fixed"):
        Messages("humble")


def test_every_type_of_the_table_is_there():
    for name in (
        "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/CameraInfo",
        "nav_msgs/msg/Odometry", "sensor_msgs/msg/JointState", "nav_msgs/msg/Path", TRAJECTORY,
        "trajectory_msgs/msg/JointTrajectory", "diagnostic_msgs/msg/DiagnosticArray",
        "rosgraph_msgs/msg/Clock", "lifecycle_msgs/msg/TransitionEvent",
    ):  # fmt: skip
        MESSAGES.prepare(name)
        assert MESSAGES.definition(name)


def test_an_unknown_type_lists_those_of_its_package():
    with pytest.raises(ValueError, match=r"have: .*nav_msgs/msg/Odometry"):
        MESSAGES.type("nav_msgs/msg/Odometer")
    with pytest.raises(ValueError, match=r"have: .*sensor_msgs"):
        MESSAGES.hash("ackermann_msgs/msg/AckermannDrive")


def test_a_message_comes_back_as_it_was():
    sent = odometry()
    got = MESSAGES.decode("nav_msgs/msg/Odometry", MESSAGES.encode(sent))
    assert got.header == sent.header
    assert nanoseconds(got.header.stamp) == 1_700_000_000_123_456_789
    assert got.pose.pose == sent.pose.pose
    assert np.array_equal(got.twist.covariance, np.arange(36.0))


def test_stamps_before_1970_come_back_too():
    assert nanoseconds(MESSAGES.time(-1)) == -1


@pytest.mark.parametrize("kind", ["odometry", "text"])
def test_a_message_that_is_cut_off_is_bad_wherever_it_was_cut(kind):
    if kind == "odometry":
        name, message = "nav_msgs/msg/Odometry", odometry()
    else:
        name = "std_msgs/msg/String"
        message = MESSAGES.type(name)("the end is missing")
    data = MESSAGES.encode(message)
    for length in range(len(data)):
        with pytest.raises(BadMessage):
            MESSAGES.decode(name, data[:length])


def test_bytes_behind_a_message_are_bad():
    data = MESSAGES.encode(odometry())
    with pytest.raises(BadMessage, match="nav_msgs/msg/Odometry"):
        MESSAGES.decode("nav_msgs/msg/Odometry", data + bytes(8))


@given(
    st.sampled_from(
        ["diagnostic_msgs/msg/DiagnosticArray", TRAJECTORY, "sensor_msgs/msg/CompressedImage"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_are_a_message_or_bad(name, data):
    with contextlib.suppress(BadMessage):
        MESSAGES.decode(name, b"\0\1\0\0" + data)


def test_a_field_of_the_wrong_kind_is_named():
    message = odometry()
    message.child_frame_id = None
    with pytest.raises(BadMessage, match="cannot encode a nav_msgs/msg/Odometry"):
        MESSAGES.encode(message)


def test_the_stamp_of_what_is_encoded():
    name = "nav_msgs/msg/Odometry"
    data = MESSAGES.encode(odometry())
    assert MESSAGES.stamp(name, data) == 1_700_000_000_123_456_789
    moved = MESSAGES.restamped(name, data, 5_000_000_001)
    assert MESSAGES.stamp(name, moved) == 5_000_000_001
    assert MESSAGES.restamped(name, moved, 1_700_000_000_123_456_789) == data
    clock = MESSAGES.encode(MESSAGES.type("rosgraph_msgs/msg/Clock")(MESSAGES.time(7)))
    assert MESSAGES.stamp("rosgraph_msgs/msg/Clock", clock) == 7


def test_big_endian_stamps_too():
    name = "nav_msgs/msg/Odometry"
    data = bytes(MESSAGES._store.serialize_cdr(odometry(), name, little_endian=False))
    assert MESSAGES.stamp(name, data) == 1_700_000_000_123_456_789
    assert MESSAGES.stamp(name, MESSAGES.restamped(name, data, 8)) == 8


def test_what_has_no_stamp_keeps_having_none():
    text = MESSAGES.encode(MESSAGES.type("std_msgs/msg/String")("longer than a stamp"))
    assert MESSAGES.stamp("std_msgs/msg/String", text) is None
    assert MESSAGES.restamped("std_msgs/msg/String", text, 5) is text
    assert MESSAGES.stamp("nobody/msg/Knows", bytes(20)) is None
    assert MESSAGES.stamp("nav_msgs/msg/Odometry", bytes(20)) is None  # never filled in
    assert MESSAGES.stamp("nav_msgs/msg/Odometry", b"") is None
