"""Whether a vehicle keeps to the area that may be driven on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.driving.motion import Motion
from fastloop.sims.driving.scene import Surroundings

__all__ = ["TOLERANCE_M", "off_road"]

TOLERANCE_M = 0.3  # nuPlan's, for boxes are larger than vehicles


def off_road(surroundings: Surroundings, ego: Motion) -> NDArray[np.float64]:
    """How far a vehicle's outermost corner is out of the drivable area.

    Args:
        surroundings: with its drivable outlines.
        ego: one vehicle at T moments.

    Returns:
        (T,) m, 0 where no corner is out of it.

    Raises:
        ValueError: where the surroundings have no drivable area.
    """
    shapely = require("shapely", extra="data")
    corners = ego.corners
    low, high = corners.min((0, 1)) - 50, corners.max((0, 1)) + 50
    outlines = [outline[:, :2] for outline in surroundings.drivable if len(outline) > 2]
    if not outlines:
        raise ValueError("the surroundings have no drivable area: give its outlines")
    near = [o for o in outlines if (o.max(0) >= low).all() and (o.min(0) <= high).all()]
    if not near:
        near = outlines
    area = shapely.union_all(shapely.make_valid([shapely.Polygon(outline) for outline in near]))
    shapely.prepare(area)
    flat = shapely.points(corners.reshape(-1, 2))
    outside = np.zeros(len(flat))
    out = ~shapely.covers(area, flat)
    outside[out] = shapely.distance(area, flat[out])
    furthest: NDArray[np.float64] = outside.reshape(-1, 4).max(1)
    return furthest
