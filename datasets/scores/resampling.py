"""How ST-P3 brings grids of later steps to the present frame, wrongly unless on an arc.

Each step's objects are drawn about the vehicle as it stands at that step; the grid is then sampled
at the nearest cells (``geometry.py:warp_features``, after FIERY). The translation is applied with
its side mirrored and unturned, which is right for a circular arc. After a lane change of 3 m,
objects are 6 m aside of where they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["seen_from", "source_cells"]


def seen_from(
    rectangles: NDArray[np.floating], poses: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Boxes (K, 6) of the present frame in those of `poses` (K, 3): x, y, heading in it."""
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])

    def turned_back(vectors: NDArray[np.floating]) -> list[NDArray[np.floating]]:
        x, y = vectors.T
        return [cos * x + sin * y, cos * y - sin * x]

    middle, heading = rectangles[:, :2] - poses[:, :2], rectangles[:, 4:]
    return np.stack([*turned_back(middle), *rectangles[:, 2:4].T, *turned_back(heading)], -1)


def source_cells(
    rows: NDArray[np.floating],
    columns: NDArray[np.floating],
    poses: NDArray[np.floating],
    n: int,
    reach: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where, in cells not rounded, the present grid's cells are looked up in the grids of `poses`.

    Args:
        rows, columns: (G, C), growing forward and to the left.
        poses: (G, 3) x, y in m, heading in rad.
        n: cells to a side.
        reach: m to a side.
    """
    cos, sin = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
    forward, left = ((2 * v + 1) / n - 1 for v in (rows, columns))
    there = (
        sin * left + cos * forward - poses[:, 0, None] / reach,
        cos * left - sin * forward + poses[:, 1, None] / reach,
    )
    row, column = (((v + 1) * n - 1) / 2 for v in there)
    return row, column
