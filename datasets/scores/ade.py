"""Average displacement of plans from one reference each, as WOD-E2E reports it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["ade", "top_rated"]


def ade(
    plans: ArrayLike, references: Sequence[ArrayLike], seconds: float, hz: float = 4
) -> NDArray[np.float64]:
    """The mean distance of each plan from its reference over the first `seconds`.

    A reference that ends early is parked at its last point, as in the Rater Feedback Score; Waymo
    has not said what its server does with the few rated trajectories that do.

    Args:
        plans: (N, T, 2) m, point k at (k + 1) / `hz` s.
        references: N arrays (n, 2), n >= 1, of the same frame and times.
        seconds: how far to look, at most T / `hz`.
        hz: points a second.

    Returns:
        (N,) m.

    Raises:
        DatasetError: shapes do not fit or something is not finite.
    """
    points = np.asarray(plans, dtype=np.float64)
    if points.ndim != 3 or points.shape[2] != 2:
        raise DatasetError(f"plans have shape {points.shape}, expected (N, T, 2)")
    if len(references) != len(points):
        raise DatasetError(f"{len(references)} references for {len(points)} plans")
    steps = round(seconds * hz)
    if not 1 <= steps <= points.shape[1] or abs(steps - seconds * hz) > 1e-6:
        raise DatasetError(
            f"{seconds} s at {hz} Hz of plans with {points.shape[1]} points, "
            "expected a whole number of points that are there"
        )
    truth = np.empty((len(points), steps, 2))
    for n, reference in enumerate(references):
        path = np.asarray(reference, dtype=np.float64)
        if path.ndim != 2 or path.shape[1] != 2 or not len(path):
            raise DatasetError(f"reference {n} has shape {path.shape}, expected (n, 2) with n >= 1")
        truth[n, : len(path)] = path[:steps]
        truth[n, len(path) :] = path[-1]
    distances = np.linalg.norm(points[:, :steps] - truth, axis=-1)
    if not np.isfinite(distances).all():
        n = np.flatnonzero(~np.isfinite(distances).all(axis=1))[0]
        raise DatasetError(f"plan {n} or its reference holds nan or inf")
    return distances.mean(axis=1)


def top_rated(trajectories: Sequence[ArrayLike], scores: ArrayLike) -> NDArray[np.float64]:
    """The rated trajectory (n, 2) with the highest score, the first of equals.

    It is the official reference of WOD-E2E's displacement error, and not what the vehicle did: the
    log itself is some 2.6 m from it over 5 s.

    Raises:
        DatasetError: there is none, or not one score for each, or they are not finite.
    """
    numbers = np.asarray(scores, dtype=np.float64)
    if not len(trajectories) or numbers.shape != (len(trajectories),):
        raise DatasetError(
            f"{len(trajectories)} rated trajectories with scores of shape {numbers.shape}, "
            "expected one or more with a score each"
        )
    if not np.isfinite(numbers).all():
        raise DatasetError(f"scores {numbers.tolist()} hold nan or inf")
    return np.asarray(trajectories[int(np.argmax(numbers))], dtype=np.float64)
