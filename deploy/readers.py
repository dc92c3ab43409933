"""From what was heard to what a policy reads, one function for each kind of observation."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fastloop.deploy.conversions.image import Picture
from fastloop.deploy.inputs import Snapshot
from fastloop.deploy.messages import BadMessage
from fastloop.deploy.motion import HEADING, SPEED, Floats, State, X, Y
from fastloop.deploy.planner import Reader

__all__ = ["READS", "ego_heading", "ego_states", "make_picture", "make_reader"]

READS = {
    "sensor_msgs/msg/Image": "picture",
    "sensor_msgs/msg/CompressedImage": "picture",
    "nav_msgs/msg/Odometry": "ego_states",
    "sensor_msgs/msg/JointState": "state",
    "nav_msgs/msg/Path": "route",
    "std_msgs/msg/Float32MultiArray": "values",
    "std_msgs/msg/Float64MultiArray": "values",
    "std_msgs/msg/UInt8": "number",
    "std_msgs/msg/Int32": "number",
    "std_msgs/msg/Int64": "number",
}
"""What is read from a type where nothing else is said."""

TURN = 2 * math.pi
BRAKE_S = 0.2  # over which an acceleration is taken


def make_reader(reads: str, topic: str, shape: Sequence[int], dtype: str, plan_hz: float) -> Reader:
    """What makes an observation of `shape` and `dtype`.

    Args:
        reads: one of the values of `READS`, or ``ego_heading``.
        topic: that it reads; not used by those that read the measured states.
        plan_hz: rows of states are as far apart as waypoints.

    Raises:
        ValueError: for any other `reads`; the known ones are listed.
    """
    kinds: dict[str, Reader] = {
        "picture": lambda seen: seen.held[topic].made(make_picture(shape, dtype)),
        "ego_states": lambda seen: _as(ego_states(seen.states, shape[0], 1 / plan_hz), dtype),
        "ego_heading": lambda seen: _as(ego_heading(seen.states, shape[0], 1 / plan_hz), dtype),
        "state": lambda seen: _as(seen.states[-1].point, dtype),
        "values": partial(_values, topic, tuple(shape), dtype),
        "number": lambda seen: torch.tensor(
            seen.held[topic].value.data, dtype=getattr(torch, dtype)
        ),
        "route": partial(_route, topic, tuple(shape), dtype),
    }
    if reads not in kinds:
        raise ValueError(f"{topic} cannot be read as {reads!r}; choose from {', '.join(kinds)}")
    return kinds[reads]


def make_picture(shape: Sequence[int], dtype: str) -> Picture:
    """What makes a picture (3, H, W) of `dtype`.

    Raises:
        ValueError: for any other shape.
    """
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"a picture is (3, H, W), the policy reads {tuple(shape)}")
    return Picture((shape[1], shape[2]), dtype)


def ego_states(states: Sequence[State], rows: int, dt: float) -> Floats:
    """(rows, 6) x, y, vx, vy, ax, ay in the vehicle's present frame, `dt` apart, the newest last.

    Before the first measured state it is taken to have come straight at that one's speed.
    """
    now = states[-1]
    x0, y0, heading0 = now.point[: HEADING + 1].tolist()
    cos0, sin0 = math.cos(heading0), math.sin(heading0)
    found = []
    for time in _times(now, rows, dt):
        x, y, heading, speed = _at(states, time)
        pull = (speed - _at(states, time - BRAKE_S)[SPEED]) / BRAKE_S
        east, north = x - x0, y - y0
        cos, sin = math.cos(heading - heading0), math.sin(heading - heading0)
        place = cos0 * east + sin0 * north, cos0 * north - sin0 * east
        found.append((*place, speed * cos, speed * sin, pull * cos, pull * sin))
    return np.array(found)


def ego_heading(states: Sequence[State], rows: int, dt: float) -> Floats:
    """(rows,) rad against the present heading, the newest (0) last."""
    heading0 = float(states[-1].point[HEADING])
    times = _times(states[-1], rows, dt)
    return np.array([math.remainder(_at(states, time)[HEADING] - heading0, TURN) for time in times])


def _times(now: State, rows: int, dt: float) -> list[float]:
    return [now.time - dt * back for back in range(rows - 1, -1, -1)]


def _at(states: Sequence[State], time: float) -> tuple[float, float, float, float]:
    """x, y, heading and speed. Plain numbers: for a few rows NumPy takes several times as long."""
    after = bisect_left(states, time, key=lambda state: state.time)
    if after == len(states):
        x, y, heading, speed = states[-1].point[: SPEED + 1].tolist()
    elif after == 0:
        x, y, heading, speed = states[0].point[: SPEED + 1].tolist()
        before = (time - states[0].time) * speed
        x, y = x + before * math.cos(heading), y + before * math.sin(heading)
    else:
        older, newer = states[after - 1], states[after]
        share = (time - older.time) / (newer.time - older.time)
        x, y, heading, speed = older.point[: SPEED + 1].tolist()
        x1, y1, heading1, speed1 = newer.point[: SPEED + 1].tolist()
        x, y, speed = x + share * (x1 - x), y + share * (y1 - y), speed + share * (speed1 - speed)
        heading += share * math.remainder(heading1 - heading, TURN)
    return x, y, heading, speed


def _values(topic: str, shape: tuple[int, ...], dtype: str, seen: Snapshot) -> torch.Tensor:
    data = np.asarray(seen.held[topic].value.data)
    if data.size != math.prod(shape):
        raise BadMessage(f"{topic} holds {data.size} numbers, the policy reads {shape}")
    return _as(data.reshape(shape), dtype)


def _route(topic: str, shape: tuple[int, ...], dtype: str, seen: Snapshot) -> torch.Tensor:
    """(R, 2) in the vehicle's frame, from the point next to it on; the last one repeated."""
    poses = seen.held[topic].value.poses
    if not poses:
        raise BadMessage(f"{topic} is a path without a point")
    places = np.array([(one.pose.position.x, one.pose.position.y) for one in poses])
    now = seen.states[-1].point
    cos, sin = math.cos(now[HEADING]), math.sin(now[HEADING])
    local = (places - now[[X, Y]]) @ np.array([[cos, -sin], [sin, cos]])
    ahead = local[int(np.hypot(*local.T).argmin()) :][: shape[0]]
    return _as(np.concatenate([ahead, np.repeat(ahead[-1:], shape[0] - len(ahead), 0)]), dtype)


def _as(values: Any, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))
