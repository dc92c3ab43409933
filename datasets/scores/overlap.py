"""Whether boxes overlap, exactly: no grid, no rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.scores.boxes import Boxes
from fastloop.datasets.scores.footprint import LENGTH, WIDTH, corners, ego_rectangles

__all__ = ["hits_of_boxes", "rectangles_overlap"]


def rectangles_overlap(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether boxes (..., 6) overlap their partners; boxes that only touch do not.

    Two convex shapes are apart exactly if they are apart along a normal of one of their sides.
    """
    axes = np.stack(
        [a[..., 4:6], a[..., 5:3:-1] * [-1, 1], b[..., 4:6], b[..., 5:3:-1] * [-1, 1]], -1
    )
    shadow_a, shadow_b = corners(a) @ axes, corners(b) @ axes  # (..., 4 corners, 4 axes)
    apart = (shadow_a.max(-2) <= shadow_b.min(-2)) | (shadow_b.max(-2) <= shadow_a.min(-2))
    return ~apart.any(-1)


def hits_of_boxes(
    plans: NDArray[np.floating], heading: NDArray[np.floating], boxes: Boxes, ahead: float
) -> NDArray[np.bool_]:
    """Whether the vehicle's box overlaps another at each waypoint: (N, T).

    Args:
        plans: (N, T, 2) m, x forward and y left.
        heading: (N, T) rad.
        ahead: m from the point that plans are of to the middle of the vehicle's box.
    """
    hits = np.zeros(plans.shape[:2], bool)
    ego = ego_rectangles(plans, heading, ahead)
    theirs = boxes.rectangles
    between = ego[boxes.sample, boxes.step, :2] - theirs[:, :2]
    reach = (np.hypot(LENGTH, WIDTH) + np.hypot(theirs[:, 2], theirs[:, 3])) / 2
    near = np.flatnonzero((between**2).sum(-1) < reach**2)
    sample, step = boxes.sample[near], boxes.step[near]
    met = rectangles_overlap(ego[sample, step], theirs[near])
    hits[sample[met], step[met]] = True
    return hits
