"""Open-loop planning on nuScenes: how far plans are from what was driven, and what they would hit.

Published tables follow four codes that differ in how steps are pooled, in which samples count, in
what there is to hit, and in their faults. A figure here is a convention and a set of switches:

- without switches, the honest figure of that convention: boxes that turn with the path, against the
  exact boxes of all vehicles and people at that time, moments that cannot be judged left out;
- with ``CONVENTIONS[name].faults``, the published one: equal to the reference's own functions.

Columns hold one value a sample, NaN where it does not count; a table's figure is their `nanmean`.
Even honest figures say little of driving: the recorded driver reacts to nobody, and constant
velocity does well (arXiv 2305.10430, 2312.03031).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.boxes import Boxes, from_vad_features
from fastloop.datasets.scores.conventions import (
    CONVENTIONS,
    DEFINITION,
    FAULTS,
    HORIZONS,
    Convention,
    checked,
)
from fastloop.datasets.scores.footprint import headings
from fastloop.datasets.scores.occupancy import (
    draw,
    hits_among_boxes,
    hits_on_grids,
    points_on_grids,
    side,
)
from fastloop.datasets.scores.overlap import hits_of_boxes

__all__ = [
    "CONVENTIONS",
    "DEFINITION",
    "FAULTS",
    "HORIZONS",
    "Boxes",
    "Convention",
    "collisions",
    "collisions_on_grids",
    "displacements",
    "distances",
    "draw",
    "from_vad_features",
    "pool",
]


def distances(plans: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Distance of each waypoint from where the vehicle was, m: (N, T) from two (N, T, 2)."""
    plans, truth = _points("plans", plans), _points("truth", truth)
    _like("truth", truth, plans)
    return np.hypot(*np.moveaxis(plans - truth, -1, 0))


def pool(
    values: NDArray[np.floating], counted: NDArray[np.bool_], pooling: str
) -> dict[str, NDArray[np.float64]]:
    """Values of steps (N, T) to columns (N,), one for each of `HORIZONS`.

    Args:
        values: of each step.
        counted: (N, T) which steps count; a column is NaN where none of its steps does.
        pooling: ``instant``, ``mean`` or ``any`` (the largest), see `Convention`.
    """
    columns = {}
    for name, K in HORIZONS.items():
        steps = slice(K - 1, K) if pooling == "instant" else slice(0, K)
        kept, there = values[:, steps], counted[:, steps]
        if pooling == "any":
            pooled = np.where(there, kept, -np.inf).max(1)
        else:
            pooled = np.where(there, kept, 0).sum(1) / np.maximum(there.sum(1), 1)
        columns[name] = np.where(there.any(1), pooled, np.nan)
    return columns


def displacements(
    plans: ArrayLike,
    truth: ArrayLike,
    valid: ArrayLike | None = None,
    *,
    convention: str,
    faults: Collection[str] = (),
) -> dict[str, NDArray[np.float64]]:
    """L2 of the convention: columns (N,) in m named as `HORIZONS`, NaN where a sample is left out.

    Args:
        plans: (N, 6, 2) m, in any one frame.
        truth: (N, 6, 2) m, in the same frame; anything where not valid.
        valid: (N, 6) bool, which futures exist; all if not given.
        convention: one of `CONVENTIONS`.
        faults: switches of `FAULTS`; only ``masked_as_zero`` has a say here.
    """
    rules, switches = checked(convention, faults)
    plans = _points("plans", plans)
    truth, valid = _truth(truth, valid, plans)
    values = np.where(valid, distances(plans, truth), 0)
    pooling = "mean" if rules.pooling == "any" else rules.pooling
    return pool(values, _counted(valid, rules, switches), pooling)


def collisions(
    plans: ArrayLike,
    truth: ArrayLike,
    boxes: Boxes,
    valid: ArrayLike | None = None,
    *,
    convention: str,
    faults: Collection[str] = (),
) -> dict[str, NDArray[np.float64]]:
    """Share of the vehicle's boxes that hit something: columns (N,) as of `displacements`.

    Args:
        plans: (N, 6, 2) m, x forward and y left of the present pose; of the lidar (``omnidrive``:
            of the rear axle).
        truth: (N, 6, 2) m, the same of what was driven: steps at which it hits something itself
            do not count.
        boxes: of the others, in the same frame.
        valid: (N, 6) bool, which futures exist; all if not given.
        convention: one of `CONVENTIONS`.
        faults: switches of `FAULTS`.
    """
    rules, switches = checked(convention, faults)
    plans = _points("plans", plans)
    truth, valid = _truth(truth, valid, plans)
    if len(boxes) and not (
        0 <= boxes.sample.min() <= boxes.sample.max() < len(plans)
        and 0 <= boxes.step.min() <= boxes.step.max() < plans.shape[1]
    ):
        raise DatasetError(f"boxes of samples or steps beyond those of plans {plans.shape}")
    if boxes.motion is not None and boxes.motion.shape[:2] != plans.shape[:2]:
        raise DatasetError(f"boxes: motion {boxes.motion.shape} where plans are {plans.shape}")
    seen = boxes.under(switches)

    def hits(paths: NDArray[np.float64]) -> NDArray[np.bool_]:
        if "cells" in switches:
            return hits_among_boxes(paths, seen, rules, switches)
        if "fixed_heading" in switches:
            heading = np.zeros(paths.shape[:2])
        else:
            heading = headings(paths, reset="heading_reset" in switches)
        return hits_of_boxes(paths, heading, seen, rules.ahead_m)

    return _pool_hits(hits(plans), hits(truth), valid, rules, switches)


def collisions_on_grids(
    plans: ArrayLike,
    truth: ArrayLike,
    grids: NDArray[np.bool_],
    valid: ArrayLike | None = None,
    *,
    convention: str,
    faults: Collection[str],
    points: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """`collisions` by lookup in grids (N, 6, side, side), rows and columns as the convention's.

    Args:
        grids: of which cells are occupied, for instance by `draw`, or a reference's own.
        faults: switches of `FAULTS`; those of what is drawn have no say here.
        points: look up the one cell under each waypoint (``obj_col``), not the vehicle's box.
    """
    rules, switches = checked(convention, faults)
    plans = _points("plans", plans)
    truth, valid = _truth(truth, valid, plans)
    n = side(rules)
    if grids.shape != (*plans.shape[:2], n, n) or grids.dtype != bool:
        raise DatasetError(
            f"grids are {grids.dtype} {grids.shape}, expected bool {(*plans.shape[:2], n, n)}"
        )
    lookup = points_on_grids if points else hits_on_grids
    hits = lookup(plans, grids, rules, switches)
    return _pool_hits(hits, hits_on_grids(truth, grids, rules, switches), valid, rules, switches)


def _pool_hits(
    hits: NDArray[np.bool_],
    recorded: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    rules: Convention,
    switches: frozenset[str],
) -> dict[str, NDArray[np.float64]]:
    """Columns of hits, where the recorded vehicle does not hit something itself."""
    counted = _counted(valid, rules, switches)
    if "filtered_as_free" not in switches:
        counted = counted & ~(recorded & valid)
    return pool((hits & ~recorded & valid).astype(np.float64), counted, rules.pooling)


def _counted(
    valid: NDArray[np.bool_], rules: Convention, switches: frozenset[str]
) -> NDArray[np.bool_]:
    if rules.whole:
        return np.broadcast_to(valid.all(1)[:, None], valid.shape)
    return np.ones_like(valid) if "masked_as_zero" in switches else valid


def _points(name: str, points: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(points, np.float64)
    if points.ndim != 3 or points.shape[2] != 2:
        raise DatasetError(f"{name} are {points.shape}, expected (N, T, 2)")
    if len(bad := np.flatnonzero(~np.isfinite(points).all((1, 2)))):
        raise DatasetError(f"{name} of {len(bad)} samples are not finite, the first: {bad[0]}")
    return points


def _like(name: str, points: NDArray[np.float64], plans: NDArray[np.float64]) -> None:
    if points.shape != plans.shape:
        raise DatasetError(f"{name} is {points.shape} where plans are {plans.shape}")


def _truth(
    truth: ArrayLike, valid: ArrayLike | None, plans: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What was driven, 0 where there is no future, and which futures exist."""
    valid = np.ones(plans.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    if valid.shape != plans.shape[:2] or plans.shape[1] < max(HORIZONS.values()):
        raise DatasetError(
            f"plans {plans.shape}, valid {valid.shape}: expected (N, T, 2), (N, T), T >= 6"
        )
    truth = np.asarray(truth, np.float64)
    _like("truth", truth, plans)
    return _points("truth", np.where(valid[..., None], truth, 0)), valid
