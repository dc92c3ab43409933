"""What the vehicle did before and after each keyframe, as planners see it and are asked for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.nuscenes.poses import invert, lidar_to_vehicle, yaws
from fastloop.datasets.nuscenes.tables import Tables

__all__ = ["FUTURE", "HZ", "PAST", "EgoMotion", "ego_motion"]

HZ = 2.0  # keyframes a second
PAST = 5  # rows of history: 2 s and now
FUTURE = 6  # waypoints: 3 s
TURN = 2.0  # m to the side after 3 s that make a command a turn


@dataclass(frozen=True)
class EgoMotion:
    """Motion of the LIDAR_TOP origin around each of N keyframes, in its present frame, m, rad, s.

    Attributes:
        future: (N, 6, 2) waypoints 0.5 s to 3 s ahead, x forward and y left; 0 where not known.
        known: (N, 6) whether the scene goes on so long.
        past: (N,) keyframes before it in its scene.
        states: (N, 5, 6) x, y, vx, vy, ax, ay, oldest first; rows before the scene's first keyframe
            repeat the first. Velocity is the last displacement over 0.5 s, acceleration the last
            change of that velocity over 0.5 s; 0 where there is no past.
        headings: (N, 5) relative to now.
        intent: (N,) 1 straight, 2 left, 3 right: the command of UniAD, VAD and ST-P3, which is read
            off the recorded future (2 m to the side at its end) and so gives the answer away.
    """

    future: NDArray[np.float64]
    known: NDArray[np.bool_]
    past: NDArray[np.int64]
    states: NDArray[np.float64]
    headings: NDArray[np.float64]
    intent: NDArray[np.int64]


def ego_motion(tables: Tables) -> EgoMotion:
    """The motion around every keyframe of `tables`."""
    poses = tables.lidar_pose
    n = len(poses)
    first = np.array([scene.first for scene in tables.scenes])[tables.scene]
    last = np.array([scene.last - 1 for scene in tables.scenes])[tables.scene]
    rows = np.arange(n)
    back = invert(poses)

    ahead = rows[:, None] + np.arange(1, FUTURE + 1)
    known = ahead <= last[:, None]
    future = _in_frame(back, poses[np.minimum(ahead, last[:, None]), :3, 3])
    side = future[:, -1, 0]  # of the last known keyframe, which stands in for the unknown
    intent = np.where(side >= TURN, 3, np.where(side <= -TURN, 2, 1))

    velocity, acceleration = np.zeros((2, n, 3))
    moved = np.flatnonzero(rows > first)
    velocity[moved] = (poses[moved, :3, 3] - poses[moved - 1, :3, 3]) * HZ
    changed = np.flatnonzero(rows > first + 1)
    acceleration[changed] = (velocity[changed] - velocity[changed - 1]) * HZ

    history = np.maximum(rows[:, None] + np.arange(1 - PAST, 1), first[:, None])
    turn = back.copy()
    turn[:, :3, 3] = 0  # directions only
    states = [
        _in_frame(back, poses[history, :3, 3]),
        _in_frame(turn, velocity[history]),
        _in_frame(turn, acceleration[history]),
    ]
    relative = back[:, None] @ poses[history]
    return EgoMotion(
        future=lidar_to_vehicle(future) * known[..., None],
        known=known,
        past=rows - first,
        states=np.concatenate([lidar_to_vehicle(state) for state in states], axis=-1),
        headings=yaws(relative),
        intent=intent.astype(np.int64),
    )


def _in_frame(back: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K, 2) of points (N, K, 3) of the map after `back` (N, 4, 4), in lidar axes."""
    return np.einsum("nij,nkj->nki", back[:, :2, :3], points) + back[:, None, :2, 3]
