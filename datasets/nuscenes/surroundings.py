"""What is around a keyframe, to be drawn: the road and everybody on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Shape
from fastloop.datasets.nuscenes.maps import NuScenesMap
from fastloop.datasets.nuscenes.poses import yaws
from fastloop.datasets.nuscenes.scenes import NuScenes
from fastloop.datasets.nuscenes.tables import Tables
from fastloop.datasets.scores.footprint import corners

__all__ = ["plan_poses", "surroundings"]

WINDOW_M = 60.0  # around the vehicle
_LAYERS = {"drivable": "drivable", "lane": "lane", "lane_line": "line"}


def plan_poses(tables: Tables, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 3) x, y in m and heading in rad, in the map, of the frames that plans at `samples` have:
    the origin of LIDAR_TOP, x where it looks forward."""
    poses = tables.lidar_pose[samples]
    return np.concatenate([poses[:, :2, 3], yaws(poses)[:, None] + np.pi / 2], axis=1)


def surroundings(data: NuScenes, sample: int, there: NuScenesMap | None) -> list[Shape]:
    """The map within 60 m, where there is one, and the vehicles and people annotated at `sample`,
    seen from above in the frame of plans: x forward, y left, m."""
    pose = plan_poses(data.tables, np.array([sample]))[0]
    shapes = []
    if there is not None:
        shapes += [
            Shape(_LAYERS[line.kind], _seen_from(pose, line.points[:, :2]), line.area)
            for line in there.window(pose[0], pose[1], WINDOW_M)
            if line.kind in _LAYERS
        ]
    boxes = data.boxes(sample)
    direction = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw)], axis=-1)
    rectangles = np.concatenate([boxes.center[:, :2], boxes.size[:, :2], direction], axis=-1)
    for category, outline in zip(boxes.category, corners(rectangles), strict=True):
        if category.startswith(("vehicle", "human")):
            kind = "pedestrian" if category.startswith("human") else "agent"
            shapes.append(Shape(kind, _seen_from(pose, outline), area=True))
    return shapes


def _seen_from(pose: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, 2) of the map in the frame at `pose` (3,)."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return (points - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])
