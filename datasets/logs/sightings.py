"""Tracks of sources that tell who was seen at which time, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import Track
from fastloop.datasets.errors import DatasetError

__all__ = ["check_size", "track"]

LIMIT = 2**24


def check_size(tracks: int, steps: int, where: str) -> None:
    """Refuse a recording whose tracks would take over a gigabyte: a few rows can ask for that,
    each of another road user at another time."""
    if tracks * steps > LIMIT:
        raise DatasetError(
            f"{where}: {tracks} road users over {steps} stamps; at most {LIMIT} in all are read"
        )


def track(
    steps: int,
    at: NDArray[np.int64],
    *,
    kind: str,
    position: NDArray[np.float64],
    heading: NDArray[np.float64],
    velocity: NDArray[np.float64],
    size: NDArray[np.float64],
    category: str,
) -> Track:
    """The track over `steps` stamps of a road user seen K times.

    Args:
        steps: stamps of the log.
        at: (K,) index of the stamp of each sighting.
        position, heading, velocity: (K, 3), (K,), (K, 2), as in `Track`; or one row for all.
        kind, size, category: as in `Track`.

    Raises:
        DatasetError: where it is seen twice at a time.
    """
    if len(np.unique(at)) != len(at):
        raise DatasetError(f"a road user ({category}) is seen twice at one time")

    def spread(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        dense = np.full((steps, *rows.shape[1:]), np.nan)
        dense[at] = rows
        return dense

    valid = np.zeros(steps, np.bool_)
    valid[at] = True
    return Track(kind, spread(position), spread(heading), spread(velocity), size, valid, category)
