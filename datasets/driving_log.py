"""One recorded drive, whatever it was recorded with: the type that every driving reader makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["FEATURES", "KINDS", "DrivingLog", "MapFeature", "Track"]

KINDS = ("vehicle", "pedestrian", "cyclist", "other")
FEATURES = (
    "lane", "lane_line", "road_edge", "drivable", "crosswalk", "stop_line", "walkway", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Track:
    """One road user over the T stamps of its log.

    Attributes:
        kind: one of `KINDS`.
        position: (T, 3) float64 center of its box, m, in the log's frame.
        heading: (T,) float64 rad, counter-clockwise from the frame's x axis.
        velocity: (T, 2) float64 m/s, in the log's frame.
        size: (3,) float64 length, width, height, m; nan where the source does not say.
        valid: (T,) whether it was seen then; the other rows are nan.
        category: the source's own word for it.
    """

    kind: str
    position: NDArray[np.float64]
    heading: NDArray[np.float64]
    velocity: NDArray[np.float64]
    size: NDArray[np.float64]
    valid: NDArray[np.bool_]
    category: str = ""


@dataclass(frozen=True)
class MapFeature:
    """One line or area of the map.

    Attributes:
        kind: one of `FEATURES`; a lane's points are its center line.
        points: (N, 3) float64 m in the log's frame; an area's outline is not closed by repetition.
        area: whether the points enclose an area.
        properties: what else the source says of it, as plain numbers and words.
    """

    kind: str
    points: NDArray[np.float64]
    area: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DrivingLog:
    """A drive: stamps, the vehicle that recorded it, the others, and the map.

    Attributes:
        name: of the recording, unique in its data set.
        source: the data set, for instance ``nuscenes``.
        frame: the frame of all positions in words, for instance ``map of boston-seaport``: right-
            handed, z up, m.
        stamps: (T,) int64 nanoseconds, rising.
        ego: key in `tracks` of the vehicle that recorded, or None where there is none.
        tracks: road users by the source's id.
        map: its lines and areas.
        signals: for instance traffic lights: id to what the source says of them.
        metadata: what else is known of the recording, as plain numbers and words.
    """

    name: str
    source: str
    frame: str
    stamps: NDArray[np.int64]
    ego: str | None
    tracks: Mapping[str, Track]
    map: tuple[MapFeature, ...] = ()
    signals: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stamps.dtype != np.int64 or (np.diff(self.stamps) <= 0).any():
            raise DatasetError(f"{self.name}: its stamps must be rising int64 nanoseconds")
        if self.ego is not None and self.ego not in self.tracks:
            raise DatasetError(
                f"{self.name}: no track is called {self.ego!r}, as its ego should be"
            )
        for key, track in self.tracks.items():
            self._check(key, track)
        for feature in self.map:
            if feature.kind not in FEATURES:
                raise DatasetError(f"{self.name}: unknown map feature {feature.kind!r}")

    def _check(self, key: str, track: Track) -> None:
        steps = len(self.stamps)
        shapes = {
            "position": (steps, 3), "heading": (steps,), "velocity": (steps, 2), "size": (3,),
            "valid": (steps,),
        }  # fmt: skip
        for name, expected in shapes.items():
            if (given := np.shape(getattr(track, name))) != expected:
                raise DatasetError(
                    f"{self.name}: {name} of track {key} has shape {given}, expected {expected}"
                )
        if track.kind not in KINDS:
            raise DatasetError(f"{self.name}: track {key} is of unknown kind {track.kind!r}")
        if not np.isfinite(track.position[track.valid]).all():
            raise DatasetError(f"{self.name}: track {key} has a position that is not finite")

    def __len__(self) -> int:
        return len(self.stamps)
