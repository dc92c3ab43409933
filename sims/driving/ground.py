"""The fixed part of a scene as flat, painted polygons, ready to be drawn many times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.driving.polygons import firsts
from fastloop.sims.driving.scene import Body, Surroundings

__all__ = ["LAYERS", "Ground", "placed"]

LAYERS = ("drivable", "crossing", "line", "edge")  # in the order in which they are painted
WIDTHS = {"line": 0.15, "edge": 0.3}  # m
TOLERANCE = 0.02  # m by which shapes may be simplified
FARTHEST = 1e8  # m: beyond all maps; shapes and bodies end there


class Ground:
    """Polygons of `LAYERS` in the scene's frame; lines and edges become one for each segment.

    Attributes:
        points: (P, 2) of all polygons, one after another.
        counts: (M,) points of each polygon.
        layers: (M,) place in `LAYERS` of each, rising.

    Raises:
        ValueError: for shapes that are not finite (N, 2).
    """

    def __init__(self, surroundings: Surroundings) -> None:
        shapes: list[NDArray[np.float64]] = []
        layers: list[int] = []
        for layer, (name, given) in enumerate(
            zip(
                LAYERS,
                (
                    surroundings.drivable,
                    surroundings.crossings,
                    surroundings.lines,
                    surroundings.edges,
                ),
                strict=True,
            )
        ):
            for i, shape in enumerate(given):
                points = _checked(shape, f"{name} {i} of the surroundings")
                found = _segments(points, WIDTHS[name]) if name in WIDTHS else _area(points)
                shapes += found
                layers += [layer] * len(found)
        self.points = np.concatenate([np.empty((0, 2)), *shapes])
        self.counts = np.array([len(shape) for shape in shapes], np.int64)
        self.layers = np.array(layers, np.int64)
        starts = firsts(self.counts)
        low, high = (
            extreme.reduceat(self.points, starts) if shapes else np.empty((0, 2))
            for extreme in (np.minimum, np.maximum)
        )
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    @classmethod
    def of(cls, surroundings: Surroundings | Ground) -> Ground:
        """The ground of surroundings, or the one that was made of them before."""
        return surroundings if isinstance(surroundings, Ground) else cls(surroundings)

    def inside(
        self, planes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Points, counts and layers of the polygons whose bounds lie not beyond any of `planes`.

        Args:
            planes: (K, 3) that keep where ``plane @ (x, y, 1) >= 0``.
        """
        reach = self._middle @ planes[:, :2].T + self._half @ np.abs(planes[:, :2]).T
        kept = (reach + planes[:, 2] >= 0).all(1)
        return self.points[np.repeat(kept, self.counts)], self.counts[kept], self.layers[kept]


def _checked(shape: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    points = np.asarray(shape, float)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{what} has shape {points.shape}, expected (N, 2) finite numbers")
    return np.clip(points, -FARTHEST, FARTHEST)


def _simplified(points: NDArray[np.float64], *, closed: bool) -> NDArray[np.float64]:
    if len(points) < 3:
        return points
    cv2 = require("cv2", extra="data")
    around_first = (points - points[0]).astype(np.float32)
    fewer = cv2.approxPolyDP(around_first[:, None], TOLERANCE, closed)[:, 0]
    simplified: NDArray[np.float64] = points[0] + fewer.astype(float)
    return simplified


def _area(points: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    outline = _simplified(points, closed=True)
    return [outline] if len(outline) > 2 else []


def _segments(points: NDArray[np.float64], width: float) -> list[NDArray[np.float64]]:
    """Each segment of a line as a rectangle (4, 2); segments without length are left out."""
    line = _simplified(points, closed=False)
    along = np.diff(line, axis=0)
    length = np.linalg.norm(along, axis=-1, keepdims=True)
    long = length[:, 0] > 0
    aside = along[long][:, ::-1] * [-1, 1] / length[long] * (width / 2)
    first, last = line[:-1][long], line[1:][long]
    return list(np.stack([first + aside, first - aside, last - aside, last + aside], 1))


def placed(body: Body, who: str) -> Body:
    """The body, no farther away and no larger than maps are.

    Raises:
        ValueError: where it is not anywhere, or of no size.
    """
    place = {
        name: getattr(body, name) for name in ("x", "y", "heading", "length", "width", "height")
    }
    numbers = np.array(list(place.values()), float)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{who} is not to be drawn: expected finite numbers, got {place}")
    if (np.abs(numbers) <= FARTHEST).all():
        return body
    inside = np.clip(numbers, -FARTHEST, FARTHEST).tolist()
    return replace(body, **dict(zip(place, inside, strict=True)))
