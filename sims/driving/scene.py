"""What a vehicle drives in: the fixed surroundings, and who is where at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Body", "Drive", "Moment", "Surroundings"]


@dataclass(frozen=True)
class Body:
    """A road user at one moment, in the scene's frame (m, rad counter-clockwise from x, m/s).

    Attributes:
        kind: ``vehicle``, ``pedestrian``, ``cyclist`` or ``other``, as in driving logs.
        x, y: middle of its box.
        heading: where its length points.
        vx, vy: velocity.
        length, width, height: of its box.
    """

    kind: str
    x: float
    y: float
    heading: float
    vx: float
    vy: float
    length: float
    width: float
    height: float = 1.6

    @property
    def speed(self) -> float:
        """m/s, never negative."""
        return float(np.hypot(self.vx, self.vy))

    def corners(self) -> NDArray[np.float64]:
        """(4, 2) of its box: front left, rear left, rear right, front right."""
        along = np.array([np.cos(self.heading), np.sin(self.heading)])
        aside = np.array([-along[1], along[0]])
        half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        offsets = half * [self.length, self.width]
        corners: NDArray[np.float64] = np.array([self.x, self.y]) + offsets @ np.stack(
            [along, aside]
        )
        return corners


@dataclass(frozen=True)
class Surroundings:
    """The fixed part of a scene, in its frame (right-handed, z up, m).

    Attributes:
        drivable: outlines (N, 2) of areas whose union may be driven on.
        lanes: center lines (N, 2) by id, each in the direction of its traffic.
        lines: painted lines (N, 2).
        edges: road edges (N, 2).
        crossings: outlines (N, 2).
        route: (N, 2) the way that the vehicle shall go, in its direction.
        speed_limit: m/s, nan where unknown.
    """

    drivable: tuple[NDArray[np.float64], ...]
    lanes: Mapping[str, NDArray[np.float64]]
    lines: tuple[NDArray[np.float64], ...]
    edges: tuple[NDArray[np.float64], ...]
    crossings: tuple[NDArray[np.float64], ...]
    route: NDArray[np.float64]
    speed_limit: float = float("nan")


@dataclass(frozen=True)
class Moment:
    """Who is where.

    Attributes:
        time_s: since the drive began.
        ego: the vehicle that is driven.
        others: by id.
    """

    time_s: float
    ego: Body
    others: Mapping[str, Body]


@dataclass(frozen=True)
class Drive:
    """A drive as it came out: what its score is made of.

    Attributes:
        surroundings: where.
        moments: at a fixed rate, the start first.
        recorded: (T, 3) x, y and heading of the recorded driver at the same times, where there was
            one; the last row stands for all later times.
    """

    surroundings: Surroundings
    moments: tuple[Moment, ...]
    recorded: NDArray[np.float64] | None = field(default=None)
