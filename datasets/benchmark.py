"""What a set of recorded moments offers to be scored on: observations in, plans out, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Benchmark", "Metric", "Moment", "Shape"]


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Attributes:
        value: nan where nothing could be scored.
        unit: SI unit, ``fraction`` (0 to 1), or ``1`` for scores.
        n: samples behind it.
        low, high: its 95 % interval.
    """

    value: float
    unit: str
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Shape:
    """A line or an area to be drawn.

    Attributes:
        kind: its layer, drawn in this order: ``drivable``, ``lane``, ``line``, ``edge``, ``agent``,
            ``pedestrian``, ``ego``.
        points: (N, 2) m in the frame of the plans: x forward, y left.
        area: whether the points enclose an area.
    """

    kind: str
    points: NDArray[np.float64]
    area: bool = False


@dataclass(frozen=True)
class Moment:
    """One sample as a person would look at it.

    Attributes:
        title: what it is, for instance scene and time.
        shapes: the surroundings.
        truth: (T, 2) what the recorded driver did, m.
        others: further trajectories by name, for instance those of raters with their scores.
        image: JPEG of the front camera, where there is one.
    """

    title: str
    shapes: Sequence[Shape]
    truth: NDArray[np.float64]
    others: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    image: bytes | None = None


class Benchmark(Protocol):
    """A data set with an official question: given the past, where should this vehicle go?

    Plans are waypoints (T, 2) in m, x forward and y left, of a point fixed to the vehicle whose
    present pose is the origin; waypoint k is for (k + 1) / hz seconds from now.

    Attributes:
        name: of the data set and split.
        keys: the samples in a fixed order, unique.
        inputs: observation key to shape and NumPy dtype.
        steps: T.
        hz: waypoints a second.
        frame: in words, which point the waypoints are of.
        conditions: what a table must say of its figures: convention, sample set, switches.
        faults: what could not be read, in words.
    """

    name: str
    keys: Sequence[str]
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    steps: int
    hz: float
    frame: str
    conditions: Mapping[str, str]
    faults: Sequence[str]

    def observe(self, key: str, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The observations `wanted` of sample `key`; raises `DatasetError` where it is damaged."""
        ...

    def score(self, keys: Sequence[str], plans: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """What each of the plans (N, T, 2) is worth: columns of N rows, each independent of the
        others, so that they can be made in any number of pieces by any number of processes."""
        ...

    def metrics(
        self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
    ) -> dict[str, Metric]:
        """The table's figures from the columns of all scored samples."""
        ...

    def worst(self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Indices of the samples, the worst first."""
        ...

    def moment(self, key: str) -> Moment:
        """Sample `key` to be drawn."""
        ...
