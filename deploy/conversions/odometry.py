"""Odometry to the measured state of a vehicle, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.deploy.messages import BadMessage, Messages
from fastloop.deploy.motion import State

__all__ = ["check_frame", "make_odometry", "pose", "vehicle_state"]


def check_frame(message: Any, frame: str) -> None:
    """Raises: BadMessage, for a message whose header names another frame than that of the plans;
    one that names none is believed."""
    found = message.header.frame_id
    if found and found != frame:
        raise BadMessage(
            f"it is in the frame {found!r}, plans go out in {frame!r}: say deploy.frame={found}"
        )


def vehicle_state(message: Any, *, time: float, acceleration: float = 0.0) -> State:
    """Where an ``Odometry`` says the vehicle is, in the frame of its header.

    Args:
        time: monotonic s at which it held.
        acceleration: m/s^2 along its path, which odometry does not tell.

    Raises:
        BadMessage: a number is not finite, or the orientation is no rotation.
    """
    place, turn = message.pose.pose.position, message.pose.pose.orientation
    x, y, z, w = turn.x, turn.y, turn.z, turn.w
    speed, rate = message.twist.twist.linear.x, message.twist.twist.angular.z
    if not all(map(math.isfinite, (place.x, place.y, x, y, z, w, speed, rate))):
        raise BadMessage("odometry with a number that is not finite")
    if abs(x * x + y * y + z * z + w * w - 1) > 0.02:
        raise BadMessage(f"odometry whose orientation ({x}, {y}, {z}, {w}) is no unit quaternion")
    heading = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    point = np.array([place.x, place.y, heading, speed, acceleration])
    return State(time, point, np.array([rate]))


def make_odometry(
    messages: Messages,
    stamp_ns: int,
    point: NDArray[np.float64],
    *,
    yaw_rate: float = 0.0,
    frame: str = "odom",
    child: str = "base_link",
) -> Any:
    """An ``Odometry``.

    Args:
        point: (4,) or more: x, y, heading, speed (m, rad, m/s).
        yaw_rate: rad/s.
        frame: in which it is; `child` is the vehicle's own.
    """
    t = messages.type
    vector = t("geometry_msgs/msg/Vector3")
    twist = t("geometry_msgs/msg/Twist")(
        vector(float(point[3]), 0.0, 0.0), vector(0.0, 0.0, float(yaw_rate))
    )
    return t("nav_msgs/msg/Odometry")(
        header=messages.header(stamp_ns, frame),
        child_frame_id=child,
        pose=t("geometry_msgs/msg/PoseWithCovariance")(
            pose(messages, float(point[0]), float(point[1]), float(point[2])), np.zeros(36)
        ),
        twist=t("geometry_msgs/msg/TwistWithCovariance")(twist, np.zeros(36)),
    )


def pose(messages: Messages, x: float, y: float, heading: float) -> Any:
    """A ``Pose`` in the plane: m and rad."""
    t = messages.type
    turn = t("geometry_msgs/msg/Quaternion")(0.0, 0.0, math.sin(heading / 2), math.cos(heading / 2))
    return t("geometry_msgs/msg/Pose")(t("geometry_msgs/msg/Point")(x, y, 0.0), turn)
