"""The ground that a vehicle covers: its box, where it points, and the corners of boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LENGTH", "WIDTH", "corners", "ego_rectangles", "headings"]

LENGTH, WIDTH = 4.084, 1.85
"""Of the recording vehicle of nuScenes, m."""

SHORTEST_STEP = 0.5  # m: the direction of less is noise


def headings(plans: NDArray[np.floating], *, reset: bool = False) -> NDArray[np.float64]:
    """Where the vehicle points at each waypoint, judged by the step that leads there.

    A step backward leaves the vehicle's front in front. Below 0.5 m a step has no direction, and
    the last heading stays.

    Args:
        plans: (N, T, 2) m, x forward and y left of the present pose.
        reset: instead, BEV-Planner's rule: the direction of the step, or 0 below 1 m.

    Returns:
        (N, T) rad, counterclockwise from the present heading.
    """
    steps = np.diff(plans, axis=1, prepend=0)
    along = np.arctan2(steps[..., 1], steps[..., 0]).astype(np.float64)
    length = np.hypot(steps[..., 0], steps[..., 1])
    if reset:
        return np.where(length < 1, 0.0, along)
    result = np.zeros(along.shape)
    heading = np.zeros(len(along))
    for t in range(along.shape[1]):
        backward = np.cos(along[:, t] - heading) < 0
        turned = along[:, t] + np.where(backward, np.pi, 0)
        heading = np.where(length[:, t] < SHORTEST_STEP, heading, turned)
        result[:, t] = heading
    return result


def ego_rectangles(
    points: NDArray[np.floating], heading: NDArray[np.floating], ahead: float
) -> NDArray[np.float64]:
    """The vehicle's box (..., 6) at `points` (..., 2), as `corners` takes it.

    Args:
        points: m, where the reference point is.
        heading: (...) rad.
        ahead: m from the reference point to the middle of the box.
    """
    direction = np.stack([np.cos(heading), np.sin(heading)], -1)
    size = np.broadcast_to([LENGTH, WIDTH], direction.shape)
    return np.concatenate([points + ahead * direction, size, direction], -1)


def corners(rectangles: NDArray[np.floating]) -> NDArray[np.floating]:
    """The corners (..., 4, 2) of boxes (..., 6): front left, rear left, rear right, front right.

    Args:
        rectangles: x, y of the middle, length, width in m; cosine and sine of the heading.
    """
    x, y, length, width, cos, sin = (rectangles[..., i, None] for i in range(6))
    along = length / 2 * np.array([1, -1, -1, 1], rectangles.dtype)
    aside = width / 2 * np.array([1, 1, -1, -1], rectangles.dtype)
    return np.stack([cos * along - sin * aside + x, sin * along + cos * aside + y], -1)
