"""Collisions by lookup in grids of cells, cell for cell as the published codes have them.

A grid's rows and columns, its rounding and its borders are the convention's. Boxes are drawn with
OpenCV's ``fillPoly`` at rounded corners, borders included; the vehicle is the cells whose centers
lie in its box, moved by the waypoint and truncated.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.scores.boxes import Boxes
from fastloop.datasets.scores.conventions import Convention
from fastloop.datasets.scores.footprint import LENGTH, WIDTH, corners, headings
from fastloop.datasets.scores.resampling import seen_from, source_cells
from fastloop.extras import require

__all__ = ["draw", "ego_cells", "hits_among_boxes", "hits_on_grids", "points_on_grids", "side"]

REACH = 50.0  # m to each side


def side(convention: Convention) -> int:
    """Cells of a grid along each side."""
    return round(2 * REACH / convention.cell_m)


def _scale(convention: Convention) -> tuple[float, float]:
    """Side of a cell and center of the first, as the references hold them: in single precision."""
    return (
        float(np.float32(convention.cell_m)),
        float(np.float32(-REACH + convention.cell_m / 2)),
    )


def draw(boxes: Boxes, samples: int, steps: int, convention: Convention) -> NDArray[np.bool_]:
    """Grids (N, T, side, side) of which cells are under boxes, in the convention's layout.

    `boxes` are those that a table sees: `Boxes.under` its switches.

    UniAD computes corners in single precision: one within 1e-5 m of the middle between two cells
    may round the other way there.
    """
    cv2 = require("cv2", extra="data")
    n = side(convention)
    grids = np.zeros((samples, steps, n, n), np.uint8)
    cells = _corner_cells(_drawn(boxes), convention)
    for i, t, polygon in zip(boxes.sample.tolist(), boxes.step.tolist(), cells, strict=True):
        cv2.fillPoly(grids[i, t], [polygon], 1)
    if boxes.motion is not None:
        every = [v.reshape(1, -1) for v in np.indices((n, n))]
        for i, t in np.ndindex(samples, steps):
            row, column, inside = _sampled(*every, boxes.motion[i, t, None], n)
            grids[i, t] = (grids[i, t][row, column] & inside).reshape(n, n)
    return grids.view(bool)


def _sampled(
    rows: NDArray[np.int64], columns: NDArray[np.int64], poses: NDArray[np.floating], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The nearest cells that `source_cells` looks up, and which of them exist."""
    row, column = (np.rint(v) for v in source_cells(rows, columns, poses, n, REACH))
    inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
    there = [np.where(inside, v, 0).astype(np.int64) for v in (row, column)]
    return there[0], there[1], inside


def _drawn(boxes: Boxes) -> NDArray[np.floating]:
    """Boxes (K, 6) in the frames in which they are drawn."""
    if boxes.motion is None:
        return boxes.rectangles
    return seen_from(boxes.rectangles, boxes.motion[boxes.sample, boxes.step])


def _corner_cells(rectangles: NDArray[np.floating], convention: Convention) -> NDArray[np.int32]:
    """Corners (K, 4, 2) in cells: column first, as OpenCV wants them."""
    cell, first = _scale(convention)
    at = corners(rectangles).astype(np.float64)
    axes = (convention.columns, convention.rows)
    at = np.stack([sign * at[..., axis] for axis, sign in axes], -1)
    return np.rint((at - first + cell / 2) / cell).astype(np.int32)


def _pattern(convention: Convention) -> NDArray[np.float64]:
    """Cells (C, 2) of the vehicle's box about its waypoint: forward, left, in cells."""
    cell, first = _scale(convention)

    def between(low: float, high: float) -> NDArray[np.float64]:
        inside = np.arange(np.ceil((low - first) / cell), np.floor((high - first) / cell) + 1)
        return inside + np.float32(first) / np.float32(cell)

    forward = between(convention.ahead_m - LENGTH / 2, convention.ahead_m + LENGTH / 2)
    left = between(-WIDTH / 2, WIDTH / 2)
    return np.stack(np.meshgrid(forward, left, indexing="ij"), -1).reshape(-1, 2)


def ego_cells(
    points: NDArray[np.floating],
    heading: NDArray[np.floating],
    convention: Convention,
    faults: Collection[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows and columns (G, C) of the vehicle's cells at `points` (G, 2), and which of them count.

    `heading` is (G,) rad. The pattern turns as in BEV-Planner: its cells are turned and rounded, so
    that a few may be met twice and others not at all.
    """
    cell, first = _scale(convention)
    n = side(convention)
    cos, sin = (f(heading).astype(np.float32).astype(np.float64) for f in (np.cos, np.sin))
    forward, left = _pattern(convention).T
    turned = (
        cos[:, None] * forward - sin[:, None] * left,
        sin[:, None] * forward + cos[:, None] * left,
    )
    origin = -float(np.float32(first) / np.float32(cell))
    index, inside = [], np.ones(turned[0].shape, bool)
    for (axis, sign), shift in ((convention.rows, convention.row_shift), (convention.columns, 0)):
        relative = np.rint(sign * turned[axis] + origin + shift)
        at = np.trunc(sign * points[:, axis, None] / cell + relative)
        inside &= (at >= 0) & (at < n)
        index.append(np.clip(at, 0, n - 1).astype(np.int64))
    if "border_clipping" in faults:
        inside[:] = True
    return index[0], index[1], inside


def _headings(plans: NDArray[np.floating], faults: Collection[str]) -> NDArray[np.float64]:
    if "fixed_heading" in faults:
        return np.zeros(plans.shape[:2])
    return headings(plans, reset="heading_reset" in faults)


def hits_on_grids(
    plans: NDArray[np.floating],
    grids: NDArray[np.bool_],
    convention: Convention,
    faults: Collection[str],
) -> NDArray[np.bool_]:
    """Whether the vehicle's box meets an occupied cell: (N, T).

    Args:
        plans: (N, T, 2) m, x forward and y left.
        grids: (N, T, side, side) in the convention's layout.
    """
    N, T = plans.shape[:2]
    heading = _headings(plans, faults)
    hits = np.zeros((N, T), bool)
    for t in range(T):
        rows, columns, inside = ego_cells(plans[:, t], heading[:, t], convention, faults)
        hits[:, t] = (grids[np.arange(N)[:, None], t, rows, columns] & inside).any(1)
    return hits


def points_on_grids(
    plans: NDArray[np.floating],
    grids: NDArray[np.bool_],
    convention: Convention,
    faults: Collection[str],
) -> NDArray[np.bool_]:
    """Whether the one cell under each waypoint is occupied: (N, T), the ``obj_col`` of tables.

    Points beyond the grid hit nothing.
    """
    N, T = plans.shape[:2]
    n = side(convention)
    edge = np.float32(convention.point_from_m if "point_cell" in faults else REACH)
    cell = np.float32(convention.cell_m)
    # In single precision: at a cell's edge it decides which cell it is.
    row, column = (
        np.trunc((edge + (sign * plans[..., axis]).astype(np.float32)) / cell)
        for axis, sign in (convention.rows, convention.columns)
    )
    inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
    at = (np.where(inside, v, 0).astype(np.int64) for v in (row, column))
    return grids[(np.arange(N)[:, None], np.arange(T), *at)] & inside


def hits_among_boxes(
    plans: NDArray[np.floating],
    boxes: Boxes,
    convention: Convention,
    faults: Collection[str],
) -> NDArray[np.bool_]:
    """`hits_on_grids` on the grids that `draw` would make, drawing only what the vehicle may meet.

    Most boxes are far from the vehicle: these are told by their middles. The cells are the same.
    """
    cv2 = require("cv2", extra="data")
    N, T = plans.shape[:2]
    boxes = boxes[_near(plans, boxes, convention)]
    moments = boxes.sample * T + boxes.step
    order = np.argsort(moments, kind="stable")
    polygons = _corner_cells(_drawn(boxes)[order], convention)
    met, start, count = np.unique(moments[order], return_index=True, return_counts=True)
    points, heading = plans.reshape(-1, 2)[met], _headings(plans, faults).reshape(-1)[met]
    n = side(convention)
    hits = np.zeros(N * T, bool)
    grid = np.zeros((n, n), np.uint8)
    for block in range(0, len(met), 1024):  # the fine grid has 738 cells under the vehicle
        part = slice(block, block + 1024)
        rows, columns, inside = ego_cells(points[part], heading[part], convention, faults)
        if boxes.motion is not None:
            poses = boxes.motion.reshape(-1, 3)[met[part]]
            rows, columns, there = _sampled(rows, columns, poses, n)
            inside &= there
        for moment, first, boxes_here, row, column, counts in zip(
            *(v[part].tolist() for v in (met, start, count)), rows, columns, inside, strict=True
        ):
            grid[:] = 0
            for polygon in polygons[first : first + boxes_here]:
                cv2.fillPoly(grid, [polygon], 1)
            hits[moment] = (grid[row, column].view(bool) & counts).any()
    return hits.reshape(N, T)


def _near(plans: NDArray[np.floating], boxes: Boxes, convention: Convention) -> NDArray[np.bool_]:
    """Boxes (K,) that may share a cell with the vehicle."""
    cell, first = _scale(convention)
    # The vehicle's cells lie within `reach` of its waypoint; clipped, they come no farther apart.
    reach = np.abs(_pattern(convention)).max(0).sum() + 2
    last = side(convention) - 1
    axes = (convention.rows, convention.columns)
    at = [np.clip((sign * plans[..., axis] - first) / cell, 0, last) for axis, sign in axes]
    if boxes.motion is not None:
        reach *= 2**0.5
        flat = (v.reshape(-1, 1) for v in at)
        sampled = source_cells(*flat, boxes.motion.reshape(-1, 3), last + 1, REACH)
        at = [v.reshape(plans.shape[:2]) for v in sampled]
    rectangles = _drawn(boxes)
    radius = np.hypot(rectangles[:, 2], rectangles[:, 3]) / (2 * cell) + 1 + reach
    near = np.ones(len(boxes), bool)
    for v, (axis, sign) in zip(at, axes, strict=True):
        middle = (sign * rectangles[:, axis] - first) / cell
        near &= np.abs(middle - v[boxes.sample, boxes.step]) <= radius
    return near
