"""Poses in the plane, and points seen from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.scene import Body

__all__ = ["Pose", "rear_axle_pose", "to_vehicle", "to_world", "wrapped"]


class Pose(NamedTuple):
    """Where a vehicle's rear axle is (m) and where the vehicle points (rad), in the scene."""

    x: float
    y: float
    heading: float


def rear_axle_pose(body: Body, rear_axle: float) -> Pose:
    """The pose of a vehicle's frame, x forward, y left.

    Args:
        body: the vehicle.
        rear_axle: m from the middle of its box back to its rear axle.
    """
    return Pose(
        body.x - rear_axle * np.cos(body.heading),
        body.y - rear_axle * np.sin(body.heading),
        body.heading,
    )


def to_world(points: NDArray[np.float64], pose: Pose) -> NDArray[np.float64]:
    """Points (..., 2) of a vehicle's frame in the scene's."""
    c, s = np.cos(pose.heading), np.sin(pose.heading)
    turned: NDArray[np.float64] = points @ np.array([[c, s], [-s, c]]) + [pose.x, pose.y]
    return turned


def to_vehicle(points: NDArray[np.float64], pose: Pose) -> NDArray[np.float64]:
    """Points (..., 2) of the scene's frame in a vehicle's."""
    c, s = np.cos(pose.heading), np.sin(pose.heading)
    turned: NDArray[np.float64] = (points - [pose.x, pose.y]) @ np.array([[c, -s], [s, c]])
    return turned


def wrapped(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same angles within -pi to pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
