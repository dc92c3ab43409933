"""Recorded drives as what is driven in: their maps as surroundings, their tracks as moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.sims.driving.scene import Body, Drive, Moment, Surroundings

__all__ = ["drive_of", "moment_of", "route_of", "strip", "surroundings_of"]

LANE_WIDTH_M = 6.0  # of lanes whose area is not known, as in MetaDrive: they lie in junctions
ROUTE_STEP_M = 0.5
KINDS = ("vehicle", "pedestrian", "cyclist")
SIZES = {"vehicle": (4.5, 1.9, 1.6), "pedestrian": (0.7, 0.7, 1.7), "cyclist": (1.8, 0.7, 1.7)}
THING = (0.5, 0.5, 1.0)


def surroundings_of(log: DrivingLog, *, route: NDArray[np.float64] | None = None) -> Surroundings:
    """The map of a drive, in the log's frame.

    Drivable is what the source says is; where it says nothing, the areas of its lanes, and strips
    of `LANE_WIDTH_M` about the lanes that have none. The speed limit is that of most of the lanes
    along the route.

    Args:
        log: any drive with a map.
        route: (N, 2) the way to go, m; by default the one that the log's ego took.
    """
    features: dict[str, list[MapFeature]] = {}
    for feature in log.map:
        features.setdefault(feature.kind, []).append(feature)
    lanes = {
        feature.id or str(index): feature
        for index, feature in enumerate(features.get("lane", []))
        if not feature.area and len(feature.points) > 1
    }
    areas = [f.points[:, :2] for f in features.get("drivable", []) if f.area]
    if not areas:
        areas = [f.points[:, :2] for f in features.get("lane", []) if f.area]
        areas += [
            strip(lane.points[:, :2], LANE_WIDTH_M) if lane.outline is None else lane.outline[:, :2]
            for lane in lanes.values()
        ]
    way = route_of(log) if route is None else route

    def polylines(kind: str, *, area: bool = False) -> tuple[NDArray[np.float64], ...]:
        return tuple(f.points[:, :2] for f in features.get(kind, []) if f.area == area)

    return Surroundings(
        drivable=tuple(area for area in areas if len(area) > 2),
        lanes={key: lane.points[:, :2] for key, lane in lanes.items()},
        lines=polylines("lane_line"),
        edges=polylines("road_edge"),
        crossings=polylines("crosswalk", area=True),
        route=way,
        speed_limit=_speed_limit(lanes, way),
    )


def route_of(log: DrivingLog) -> NDArray[np.float64]:
    """(N, 2) the way that the log's ego took, m, a point every `ROUTE_STEP_M` or more."""
    assert log.ego is not None
    ego = log.tracks[log.ego]
    way = ego.position[ego.valid, :2]
    kept = [0]
    for index, point in enumerate(way):
        if np.hypot(*(point - way[kept[-1]])) >= ROUTE_STEP_M:
            kept.append(index)
    if len(kept) > 1:
        kept[-1] = len(way) - 1
    return way[kept]


def strip(line: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """The outline (2 N, 2) of a strip of that width, m, about a line (N, 2)."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    aside = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    return np.concatenate([line + aside, (line - aside)[::-1]])


def moment_of(log: DrivingLog, index: int) -> Moment:
    """Who was where at one stamp of a drive; who was not seen then is left out.

    Velocities that are not known are 0, and sizes the usual ones of their kind.
    """
    assert log.ego is not None
    return Moment(
        time_s=float(log.stamps[index] - log.stamps[0]) * 1e-9,
        ego=body_of(log.tracks[log.ego], index),
        others={
            key: body_of(track, index)
            for key, track in log.tracks.items()
            if key != log.ego and track.valid[index]
        },
    )


def drive_of(log: DrivingLog) -> Drive:
    """A recorded drive as one that came out, its own driver's."""
    assert log.ego is not None
    ego = log.tracks[log.ego]
    return Drive(
        surroundings=surroundings_of(log),
        moments=tuple(moment_of(log, index) for index in range(len(log))),
        recorded=np.column_stack([ego.position[:, :2], ego.heading]),
    )


def body_of(track: Track, index: int) -> Body:
    """A road user at one stamp at which it was seen."""
    kind = track.kind if track.kind in KINDS else "other"
    size = np.where(np.isnan(track.size), SIZES.get(kind, THING), track.size)
    x, y = map(float, track.position[index, :2])
    vx, vy = map(float, np.nan_to_num(track.velocity[index]))
    return Body(kind, x, y, float(track.heading[index]), vx, vy, *map(float, size))


def _speed_limit(lanes: dict[str, MapFeature], route: NDArray[np.float64]) -> float:
    """m/s; nan where no lane within 3 m of the route tells."""
    limits = [
        lane.properties["speed_limit_kmh"] / 3.6
        for lane in lanes.values()
        if isinstance(lane.properties.get("speed_limit_kmh"), int | float)
        and _near(lane.points[:, :2], route)
    ]
    return float(np.median(limits)) if limits else float("nan")


def _near(line: NDArray[np.float64], route: NDArray[np.float64]) -> bool:
    gaps = np.linalg.norm(line[:, None] - route[None, ::4], axis=2)
    return bool(len(route)) and float(gaps.min()) < 3.0
