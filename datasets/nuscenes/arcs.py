"""Center lines of lanes, which nuScenes writes as paths of arcs (Dubins paths)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["center_line"]

STEP = 1.0  # m between points
LONGEST = 10_000.0  # m
_TURNS = {"L": 1.0, "S": 0.0, "R": -1.0}


def center_line(paths: Sequence[Mapping[str, Any]], step: float = STEP) -> NDArray[np.float64]:
    """(N, 2) points along consecutive paths, at most `step` m apart on each of their segments.

    A path starts at ``start_pose`` (x, y, heading) and has three segments, for instance ``LSR``:
    left along ``radius``, straight, right, each ``segment_length`` m long.

    Raises:
        DatasetError: a path is laid out otherwise, or all are longer than 10 km.
    """
    points, driven = [], 0.0
    for path in paths:
        x, y, heading = (float(value) for value in path["start_pose"])
        shape, radius = str(path["shape"]), float(path["radius"])
        lengths = [float(value) for value in path["segment_length"]]
        numbers = np.array([x, y, heading, radius, *lengths])
        if len(shape) != len(lengths) or not set(shape) <= set(_TURNS) or not radius > 0:
            raise DatasetError(f"a lane of shape {shape!r}, radius {radius}, lengths {lengths}")
        driven += sum(lengths)
        if not np.isfinite(numbers).all() or min(lengths) < 0 or driven > LONGEST:
            raise DatasetError(f"a lane of lengths {lengths} at {x}, {y}, {heading}")
        points.append([[x, y]])
        for turn, length in zip(shape, lengths, strict=True):
            if length == 0:
                continue
            along = np.linspace(0, length, int(np.ceil(length / step)) + 1)[1:]
            bend = _TURNS[turn] / radius
            angle = bend * along
            # The chord of an arc: sinc makes a straight segment no special case.
            chord = along * np.sinc(angle / (2 * np.pi))
            direction = heading + angle / 2
            steps = chord[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=-1)
            points.append(steps + np.array([x, y]))
            (x, y), heading = points[-1][-1], heading + angle[-1]
    line = np.concatenate(points) if points else np.zeros((0, 2))
    new = np.ones(len(line), dtype=bool)
    new[1:] = (np.abs(np.diff(line, axis=0)) > 1e-6).any(axis=1)
    return line[new]
