"""The T of PushT: its shape, and how far a pose is from the goal.

Pixels and radians. A pose is (x, y, angle) of gym_pusht's block body; in its body frame the bar
covers x in [-60, 60], y in [0, 30], the stem x in [-15, 15], y in [30, 120].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AGENT_RADIUS = 15.0
GOAL = np.array([256.0, 256.0, np.pi / 4])
WALLS = (7.0, 505.0)  # inner faces; they stop the T, not the agent

OUTLINE = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float
)
AREA = 6300.0
KEYPOINTS = np.vstack([OUTLINE[[0, 1, 2, 7]], OUTLINE[[6, 3, 4, 5]]])  # of the bar, of the stem
CENTROID = KEYPOINTS.mean(0)
SPREAD = float(np.sqrt(((KEYPOINTS - CENTROID) ** 2).sum(1).mean()))


def rotate(angle: float | Array, xy: Array) -> Array:
    """Rotate `xy` (..., 2) by `angle`, a scalar or (...)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * xy[..., 0] - s * xy[..., 1], s * xy[..., 0] + c * xy[..., 1]], -1)


def to_world(pose: Array, xy: Array) -> Array:
    """Map body-frame points (..., 2) to the world; `pose` (3,)."""
    return rotate(float(pose[2]), xy) + pose[:2]


def to_body(pose: Array, xy: Array) -> Array:
    """Map world points (..., 2) to the body frame of `pose` (3,)."""
    return rotate(-float(pose[2]), xy - pose[:2])


def centroids(poses: Array) -> Array:
    """Mean keypoint (..., 2) in the world of the T at `poses` (..., 3)."""
    mean = np.broadcast_to(CENTROID, (*poses.shape[:-1], 2))
    return rotate(poses[..., 2], mean) + poses[..., :2]


def clearance(xy: Array) -> Array:
    """Distance (...) of body-frame points (..., 2) from the T, zero inside."""
    x, y = np.abs(xy[..., 0]), xy[..., 1]  # the T is symmetric
    bar = np.hypot(np.maximum(x - 60, 0.0), np.maximum(np.abs(y - 15) - 15, 0.0))
    stem = np.hypot(np.maximum(x - 15, 0.0), np.maximum(np.abs(y - 75) - 45, 0.0))
    return np.asarray(np.minimum(bar, stem))


def outward(xy: Array) -> Array:
    """Unit direction (2,) in which the clearance of a body-frame point (2,) grows fastest."""
    right, left, up, down = clearance(xy + 0.5 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]))
    gradient = np.array([right - left, up - down])
    norm = float(np.linalg.norm(gradient))
    return gradient / norm if norm > 1e-6 else np.array([0.0, -1.0])


def edges() -> list[tuple[Array, Array, Array, float]]:
    """The outline's eight edges: start (2,), unit tangent (2,), outward normal (2,), length."""
    found = []
    for a, b in zip(OUTLINE, np.roll(OUTLINE, -1, 0), strict=True):
        length = float(np.linalg.norm(b - a))
        tangent = (b - a) / length
        found.append((a, tangent, np.array([tangent[1], -tangent[0]]), length))
    return found


def turn_to_goal(angle: Array) -> Array:
    """Angle (...) of the T relative to the goal, wrapped to [-pi, pi]."""
    turn = angle - GOAL[2]
    return np.asarray(turn - 2 * np.pi * np.rint(turn / (2 * np.pi)))


def pose_error(centroid: Array, angle: Array) -> Array:
    """Distance (...) of the T from the goal in pixels.

    The root mean square distance of the eight keypoints from their goal, with the arc in place of
    the chord, so that it keeps growing up to half a turn. `centroid` (..., 2), `angle` (...).
    """
    x, y = to_world(GOAL, CENTROID)
    arc = SPREAD * turn_to_goal(angle)
    return np.asarray(np.sqrt((centroid[..., 0] - x) ** 2 + (centroid[..., 1] - y) ** 2 + arc**2))


def _normal_motion() -> tuple[Array, Array]:
    """Maps (x, y, turn) to the normal motion of 40 outline points, and the points' weights."""
    rows, weights = [], []
    for start, tangent, normal, length in edges():
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            arm = start + share * length * tangent - CENTROID
            rows.append([normal[0], normal[1], arm[0] * normal[1] - arm[1] * normal[0]])
            weights.append(length / 5 / (2 * AREA))
    return np.array(rows).T, np.array(weights)


_MOTION, _WEIGHTS = _normal_motion()


def missing(centroid: Array, angle: Array) -> Array:
    """Share (...) of the goal left uncovered, to first order in the distance from it.

    Half the area that the outline sweeps on its way there. `centroid` (..., 2), `angle` (...).
    """
    shift = rotate(-GOAL[2], centroid - to_world(GOAL, CENTROID))
    motion = np.concatenate([shift, turn_to_goal(angle)[..., None]], -1) @ _MOTION
    return np.asarray(np.abs(motion) @ _WEIGHTS)


def wall_overlap(centroid: Array, angle: Array) -> Array:
    """How far (...) in pixels the T sticks into the walls; `centroid` (..., 2), `angle` (...)."""
    arms = np.broadcast_to(OUTLINE - CENTROID, (*np.shape(angle), 8, 2))
    corners = rotate(np.asarray(angle)[..., None], arms) + centroid[..., None, :]
    beyond = np.maximum(WALLS[0] - corners, corners - WALLS[1])
    return np.asarray(np.maximum(beyond, 0.0).max((-1, -2)))
