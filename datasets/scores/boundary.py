"""Whether the vehicle's box leaves the drivable area, as in BEV-Planner (arXiv 2312.03031)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.footprint import corners, ego_rectangles, headings
from fastloop.extras import require

__all__ = ["leaves_area"]


def leaves_area(
    plans: ArrayLike, poses: ArrayLike, area: Any, *, ahead_m: float = 0.5
) -> NDArray[np.bool_]:
    """Whether the vehicle's box is not wholly on `area`, now and at each waypoint: (N, T + 1).

    With exact polygons, where OmniDrive's ``plan_boundary`` looks up cells of 0.1 m, and turns the
    box but not the offset of its middle. For the rate, a sample already off the area at present
    tells nothing (the reference counts it as inside)::

        columns = pool(off[:, 1:], np.repeat(~off[:, :1], T, axis=1), "any")

    Args:
        plans: (N, T, 2) m, x forward and y left of the present pose.
        poses: (N, 3) x, y in m and heading in rad of the present pose in the map's frame.
        area: shapely polygon or multipolygon in the map's frame. Its parts must not touch along an
            edge, as those of nuScenes do: merge them with `shapely.unary_union`.
        ahead_m: from the point that plans are of to the middle of the vehicle's box: 0.5 for the
            lidar of nuScenes, 1.485793 for its rear axle.
    """
    shapely = require("shapely", extra="data")
    plans, poses = np.asarray(plans, np.float64), np.asarray(poses, np.float64)
    if plans.ndim != 3 or plans.shape[2] != 2 or poses.shape != (len(plans), 3):
        raise DatasetError(
            f"plans are {plans.shape} and poses {poses.shape}, expected (N, T, 2) and (N, 3)"
        )
    if not (np.isfinite(plans).all() and np.isfinite(poses).all()):
        raise DatasetError("plans and poses must be finite")
    if not area.is_valid:
        raise DatasetError(
            f"the area is not valid ({shapely.is_valid_reason(area)}): merge it with unary_union"
        )
    points = np.concatenate([np.zeros_like(plans[:, :1]), plans], axis=1)
    heading = np.concatenate([np.zeros_like(plans[:, :1, 0]), headings(plans)], axis=1)
    at = corners(ego_rectangles(points, heading, ahead_m))
    cos, sin = np.cos(poses[:, 2])[:, None, None], np.sin(poses[:, 2])[:, None, None]
    x, y = at[..., 0], at[..., 1]
    on_map = np.stack(
        [
            cos * x - sin * y + poses[:, 0, None, None],
            sin * x + cos * y + poses[:, 1, None, None],
        ],
        -1,
    )
    shapely.prepare(area)
    return ~shapely.covers(area, shapely.polygons(on_map))
