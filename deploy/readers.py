"""From what was heard to what a policy reads, one function for each kind of observation."""

from __future__ import annotations

import math
from bisect import bisect_right
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
    """What makes a picture (3, H, W) of `dtype`."""
    return Picture((shape[1], shape[2]), dtype)


def ego_states(states: Sequence[State], rows: int, dt: float) -> Floats:
    """(rows, 6) x, y, vx, vy, ax, ay in the vehicle's present frame, `dt` apart, the newest last.

    Before the first measured state it is taken to have come straight at that one's speed.
    """
    now = states[-1]
    times = now.time - dt * np.arange(rows - 1, -1, -1)
    x, y, heading, speeds = _at(states, np.concatenate([times, times - BRAKE_S]))
    x, y, heading, speed = x[:rows], y[:rows], heading[:rows], speeds[:rows]
    pull = (speed - speeds[rows:]) / BRAKE_S
    cos, sin = math.cos(now.point[HEADING]), math.sin(now.point[HEADING])
    turn = np.array([[cos, -sin], [sin, cos]])
    places = np.column_stack([x - now.point[X], y - now.point[Y]]) @ turn
    toward = np.column_stack([np.cos(heading), np.sin(heading)]) @ turn
    return np.column_stack([places, speed[:, None] * toward, pull[:, None] * toward])


def ego_heading(states: Sequence[State], rows: int, dt: float) -> Floats:
    """(rows,) rad against the present heading, the newest (0) last."""
    times = states[-1].time - dt * np.arange(rows - 1, -1, -1)
    turned: Floats = _at(states, times)[2] - states[-1].point[HEADING]
    return np.remainder(turned + math.pi, 2 * math.pi) - math.pi


def _at(states: Sequence[State], times: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """x, y, heading and speed at `times`."""
    first = bisect_right(states, times.min(), key=lambda state: state.time)
    states = states[max(0, first - 1) :]
    known = np.array([state.time for state in states])
    points = np.array([state.point for state in states])
    headings = points[:, HEADING].copy()
    # As np.unwrap, in a third of its time: this is done in every tick.
    headings[1:] -= TURN * np.cumsum(np.round((headings[1:] - headings[:-1]) / TURN))
    x, y, heading, speed = (
        np.interp(times, known, column)
        for column in (points[:, X], points[:, Y], headings, points[:, SPEED])
    )
    before = np.minimum(times - known[0], 0.0) * points[0, SPEED]
    return x + before * math.cos(headings[0]), y + before * math.sin(headings[0]), heading, speed


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
