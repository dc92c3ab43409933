"""Where a vehicle is among the lanes, of which only the center lines are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.driving.motion import Motion
from fastloop.sims.driving.scene import Surroundings

__all__ = ["LANE_WIDTH", "LanePlace", "driving_direction", "lane_place"]

LANE_WIDTH = 3.5  # m, of every lane
CROSSING_ANGLE = np.deg2rad(30)
HORIZON_S = 1.0
COMPLIANCE_M, VIOLATION_M = 2.0, 6.0


@dataclass(frozen=True)
class LanePlace:
    """Of a vehicle at T moments.

    Attributes:
        within_one: (T,) whether its whole box is in one lane; true where there are no lanes.
        crossing: (T,) whether a lane of another direction passes under its middle.
        offset: (T,) m from its middle to the nearest center line, inf where that is in no lane.
        progress: (T,) m that its middle moved since the moment before along the lanes that it is
            in, along the one that suits it best; negative against the traffic, 0 in no lane.
    """

    within_one: NDArray[np.bool_]
    crossing: NDArray[np.bool_]
    offset: NDArray[np.float64]
    progress: NDArray[np.float64]


def lane_place(surroundings: Surroundings, ego: Motion) -> LanePlace:
    """Place a vehicle among the lanes, each `LANE_WIDTH` wide about its center line.

    Args:
        surroundings: with its lanes.
        ego: one vehicle at T moments.
    """
    shapely = require("shapely", extra="data")
    count = len(ego)
    lines = [line for line in surroundings.lanes.values() if len(line) > 1]
    parts = [np.stack([line[:-1, :2], line[1:, :2]], axis=1) for line in lines]
    segments = np.concatenate([np.zeros((0, 2, 2)), *parts])
    low, high = ego.center.min(0) - LANE_WIDTH, ego.center.max(0) + LANE_WIDTH
    near = (segments.max(1) >= low).all(1) & (segments.min(1) <= high).all(1)
    segments = segments[near & (segments[:, 0] != segments[:, 1]).any(1)]
    tree = shapely.STRtree(shapely.linestrings(segments))
    points = shapely.points(ego.center)
    at, on = tree.query(points, predicate="dwithin", distance=LANE_WIDTH / 2)
    distance = shapely.distance(points[at], tree.geometries[on])

    direction = segments[on, 1] - segments[on, 0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    cos = np.abs((direction * ego.along[at]).sum(1))
    sin = np.abs((direction * ego.aside[at]).sum(1))
    reach = distance + ego.width[at] / 2 * cos + ego.length[at] / 2 * sin
    moved = np.diff(ego.center, axis=0, prepend=ego.center[:1])

    within_one = np.full(count, not surroundings.lanes)
    within_one[at[reach <= LANE_WIDTH / 2]] = True
    crossing = np.zeros(count, bool)
    crossing[at[sin > np.sin(CROSSING_ANGLE)]] = True
    offset = np.full(count, np.inf)
    np.minimum.at(offset, at, distance)
    progress = np.full(count, -np.inf)
    np.maximum.at(progress, at, (direction * moved[at]).sum(1))
    progress[np.isneginf(progress)] = 0.0
    return LanePlace(within_one, crossing, offset, progress)


def driving_direction(place: LanePlace, step_s: float) -> float:
    """1 where it moved less than 2 m against the traffic in any second, 0.5 below 6 m, else 0.

    As in nuPlan, where the window of a second holds both its ends.
    """
    window = round(HORIZON_S / step_s) + 1
    total = np.concatenate([np.zeros(window), np.cumsum(place.progress)])
    against = -(total[window:] - total[:-window]).min()
    return 1.0 if against < COMPLIANCE_M else 0.5 if against < VIOLATION_M else 0.0
