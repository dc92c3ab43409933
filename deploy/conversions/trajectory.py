"""Motions as the messages that vehicles, arms and viewers follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.deploy.conversions.odometry import pose
from fastloop.deploy.messages import Messages
from fastloop.deploy.motion import ACCELERATION, HEADING, SPEED, Floats

__all__ = ["autoware_trajectory", "joint_trajectory", "path"]

_FIXED = 10_000  # points of Autoware's fixed version


def autoware_trajectory(
    messages: Messages, times: Floats, points: Floats, stamp_ns: int, *, frame: str = "map",
    wheelbase_m: float = 0.0,
) -> Any:  # fmt: skip
    """``autoware_planning_msgs/msg/Trajectory`` in the version of `messages`.

    Args:
        times: (T,) s from `stamp_ns` on.
        points: (T, 5) x, y, heading, speed, acceleration in `frame`.
        stamp_ns: nanoseconds since 1970.
        wheelbase_m: tells the angle of the front wheels; 0 leaves it 0.

    The fixed version repeats the last point, as it has no place for their number.
    """
    duration = messages.type("builtin_interfaces/msg/Duration")
    point = messages.type("autoware_planning_msgs/msg/TrajectoryPoint")
    rates = _rates(points[:, HEADING], times)
    speeds = points[:, SPEED]
    angles = np.zeros(len(times))
    moving = np.abs(speeds) > 0.1
    angles[moving] = np.arctan(wheelbase_m * rates[moving] / speeds[moving])
    rows = np.column_stack([times, points[:, : ACCELERATION + 1], rates, angles]).tolist()
    found = [
        point(
            duration(*_split(time)), pose(messages, x, y, turn), speed, 0.0, pull, rate, angle, 0.0
        )
        for time, x, y, turn, speed, pull, rate, angle in rows
    ]
    if messages.autoware == "fixed":
        found += found[-1:] * (_FIXED - len(found))
    return messages.type("autoware_planning_msgs/msg/Trajectory")(
        messages.header(stamp_ns, frame), found
    )


def path(
    messages: Messages, times: Floats, points: Floats, stamp_ns: int, *, frame: str = "map"
) -> Any:
    """``nav_msgs/msg/Path``, for viewers: arguments as of `autoware_trajectory`."""
    stamped = messages.type("geometry_msgs/msg/PoseStamped")
    poses = [
        stamped(messages.header(stamp_ns + round(time * 1e9), frame), pose(messages, x, y, heading))
        for time, (x, y, heading) in zip(
            times.tolist(), points[:, : HEADING + 1].tolist(), strict=True
        )
    ]
    return messages.type("nav_msgs/msg/Path")(messages.header(stamp_ns, frame), poses)


def joint_trajectory(
    messages: Messages, times: Floats, points: Floats, stamp_ns: int, names: Sequence[str]
) -> Any:
    """``trajectory_msgs/msg/JointTrajectory`` with positions and velocities.

    Args:
        times: (T,) s from `stamp_ns` on.
        points: (T, A) positions of the joints `names`, rad.
        stamp_ns: nanoseconds since 1970.
    """
    duration = messages.type("builtin_interfaces/msg/Duration")
    point = messages.type("trajectory_msgs/msg/JointTrajectoryPoint")
    rates = _rates(points, times)
    none = np.zeros(0)
    found = [
        point(positions, rate, none, none, duration(*_split(time)))
        for time, positions, rate in zip(times.tolist(), points, rates, strict=True)
    ]
    return messages.type("trajectory_msgs/msg/JointTrajectory")(
        messages.header(stamp_ns, ""), list(names), found
    )


def _split(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * 1e9), 1_000_000_000)


def _rates(values: NDArray[np.float64], times: Floats) -> NDArray[np.float64]:
    """How fast `values` (T, ...) change, per second."""
    if len(times) < 2:
        return np.zeros_like(values)
    dt = np.diff(times).reshape(-1, *[1] * (values.ndim - 1))
    slopes = np.diff(values, axis=0) / dt
    # As np.gradient, in a third of its time: this is done in every tick.
    inner = (slopes[:-1] * dt[1:] + slopes[1:] * dt[:-1]) / (dt[1:] + dt[:-1])
    rates: NDArray[np.float64] = np.concatenate([slopes[:1], inner, slopes[-1:]])
    return rates
