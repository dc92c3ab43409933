"""One recorded drive, whatever it was recorded with: the type that every driving reader makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["FEATURES", "KINDS", "SIGNALS", "DrivingLog", "MapFeature", "Signal", "Track"]

KINDS = ("vehicle", "pedestrian", "cyclist", "cone", "barrier", "other")
FEATURES = (
    "lane", "lane_line", "road_edge", "drivable", "crosswalk", "stop_line", "walkway", "stop_sign",
    "speed_bump", "driveway", "other",
)  # fmt: skip
SIGNALS = (
    "unknown", "stop", "caution", "go", "arrow_stop", "arrow_caution", "arrow_go", "flashing_stop",
    "flashing_caution",
)  # fmt: skip


class _Comparable:
    """Equal where all fields are, arrays element by element (nan is equal to nan)."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _equal(vars(self), vars(other))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        missing = one.dtype.kind == "f" and other.dtype.kind == "f"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=missing)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


@dataclass(frozen=True, eq=False)
class Track(_Comparable):
    """One road user, or thing on the road, over the T stamps of its log.

    Attributes:
        kind: one of `KINDS`.
        position: (T, 3) float64 center of its box, m, in the log's frame; z is 0 where the source
            has none.
        heading: (T,) float64 rad, counter-clockwise from the frame's x axis.
        velocity: (T, 2) float64 m/s, in the log's frame; nan where it is not known.
        size: (3,) float64 length, width, height, m; nan where the source does not say.
        valid: (T,) whether it was seen then; the other rows are nan.
        category: the source's own word for it.
        properties: what else the source says of it, as plain numbers, words and arrays.
    """

    kind: str
    position: NDArray[np.float64]
    heading: NDArray[np.float64]
    velocity: NDArray[np.float64]
    size: NDArray[np.float64]
    valid: NDArray[np.bool_]
    category: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MapFeature(_Comparable):
    """One point, line or area of the map.

    Attributes:
        kind: one of `FEATURES`; a lane's points are its center line.
        points: (N, 3) float64 m in the log's frame, z is 0 where the source has none; an area's
            outline is not closed by repetition.
        area: whether the points enclose an area.
        properties: what else the source says of it, as plain numbers, words and arrays. Of a lane:
            ``entry_lanes``, ``exit_lanes``, ``left_neighbor``, ``right_neighbor`` (lists of ids),
            ``speed_limit_kmh``, where they are known.
        id: unique in its log where other features or signals speak of it, else empty.
        category: its finer type, in the words of ScenarioNet where one fits (for instance
            ``ROAD_LINE_BROKEN_SINGLE_YELLOW``), else the source's own.
        outline: (M, 3) float64 m, of a lane whose area is known, as `points` of an area.
    """

    kind: str
    points: NDArray[np.float64]
    area: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    category: str = ""
    outline: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Signal(_Comparable):
    """What one traffic light shows to one lane.

    Attributes:
        states: T words, each one of `SIGNALS`, or None where it was not seen.
        lane: id of the lane that it rules; empty where it is not known.
        position: (3,) float64 m in the log's frame, where vehicles stop for it; None if not known.
        properties: what else the source says of it, as plain numbers, words and arrays.
    """

    states: tuple[str | None, ...]
    lane: str = ""
    position: NDArray[np.float64] | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DrivingLog(_Comparable):
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
        signals: `Signal`s by the source's id, or by the id of their lane; what else rules the road
            (the source's own tables of it) as plain numbers, words and arrays.
        metadata: what else is known of the recording, as plain numbers, words and arrays.

    Logs are equal where everything in them is.

    Raises:
        DatasetError: where the parts do not agree in their lengths, hold words that are not in the
            lists above, or numbers that are not finite where something was seen.
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
        stamps = self.stamps
        if stamps.ndim != 1 or stamps.dtype != np.int64 or (stamps[1:] <= stamps[:-1]).any():
            raise DatasetError(f"{self.name}: its stamps must be rising int64 nanoseconds")
        if self.ego is not None and self.ego not in self.tracks:
            raise DatasetError(
                f"{self.name}: no track is called {self.ego!r}, as its ego should be"
            )
        for key, track in self.tracks.items():
            self._check(key, track)
        ids = [feature.id for feature in self.map if feature.id]
        if len(set(ids)) < len(ids):
            raise DatasetError(f"{self.name}: two map features have the same id")
        for feature in self.map:
            self._check_feature(feature)
        for key, signal in self.signals.items():
            if isinstance(signal, Signal):
                self._check_signal(key, signal)

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
        if track.valid.dtype != np.bool_:
            raise DatasetError(
                f"{self.name}: valid of track {key} is {track.valid.dtype}, not bool"
            )
        for name in ("position", "heading"):
            if not np.isfinite(getattr(track, name)[track.valid]).all():
                raise DatasetError(f"{self.name}: track {key} has a {name} that is not finite")

    def _check_feature(self, feature: MapFeature) -> None:
        what = f"{self.name}: map feature {feature.id or feature.kind}"
        if feature.kind not in FEATURES:
            raise DatasetError(
                f"{what} is of unknown kind {feature.kind!r}; have: {', '.join(FEATURES)}"
            )
        for points in (feature.points, feature.outline):
            if points is not None and (points.ndim != 2 or points.shape[1] != 3):
                raise DatasetError(f"{what} has points of shape {points.shape}, expected (N, 3)")
            if points is not None and not np.isfinite(points).all():
                raise DatasetError(f"{what} has a point that is not finite")

    def _check_signal(self, key: str, signal: Signal) -> None:
        if len(signal.states) != len(self):
            raise DatasetError(
                f"{self.name}: signal {key} has {len(signal.states)} states for {len(self)} stamps"
            )
        if unknown := set(signal.states) - {None, *SIGNALS}:
            raise DatasetError(
                f"{self.name}: signal {key} shows {unknown}; have: {', '.join(SIGNALS)}"
            )

    def __len__(self) -> int:
        return len(self.stamps)

    def at(self, stamps: NDArray[np.int64]) -> DrivingLog:
        """This log at other stamps, for instance of another rate.

        Poses and velocities are interpolated in a straight line between the two stamps about each
        new one, at both of which a track must have been seen; a signal shows what it showed last.
        What the source tells stamp by stamp beside them (``state`` of a track, signals that are no
        `Signal`) is left out.

        Args:
            stamps: (N,) int64 ns, rising, within those of the log.

        Raises:
            DatasetError: where they are not.
        """
        if not (len(stamps) and len(self)) or not (
            self.stamps[0] <= stamps.min() and stamps.max() <= self.stamps[-1]
        ):
            raise DatasetError(f"{self.name}: stamps must be within those of the log")
        before = np.searchsorted(self.stamps, stamps, side="right") - 1
        after = np.minimum(before + (stamps > self.stamps[before]), len(self) - 1)
        span = np.maximum(self.stamps[after] - self.stamps[before], 1)
        share = ((stamps - self.stamps[before]) / span)[:, None]

        def moved(track: Track) -> Track:
            turn = track.heading[after] - track.heading[before]
            turn = (turn + np.pi) % (2 * np.pi) - np.pi
            return replace(
                track,
                position=track.position[before] * (1 - share) + track.position[after] * share,
                heading=track.heading[before] + turn * share[:, 0],
                velocity=track.velocity[before] * (1 - share) + track.velocity[after] * share,
                valid=track.valid[before] & track.valid[after],
                properties={k: v for k, v in track.properties.items() if k != "state"},
            )

        return replace(
            self,
            stamps=stamps,
            tracks={key: moved(track) for key, track in self.tracks.items()},
            signals={
                key: replace(signal, states=tuple(signal.states[i] for i in before))
                for key, signal in self.signals.items()
                if isinstance(signal, Signal)
            },
        )
