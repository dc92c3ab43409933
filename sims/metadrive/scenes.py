"""Recorded drives, brought to what can be driven in; those that cannot are named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.open import open_logs
from fastloop.sims.driving.retiming import retimed
from fastloop.sims.driving.scene import Surroundings
from fastloop.sims.driving.world import route_of, surroundings_of
from fastloop.sims.metadrive.problem import with_ego

__all__ = ["ParkedError", "Scene", "read_scenes", "scene_of"]

TICK_NS = 100_000_000
FASTEST, FURTHEST_M = 150.0, 20.0  # m/s, and m from the lanes
NUSCENES_CENTER_M = 1.44  # ahead of the rear axle


class ParkedError(DatasetError):
    """A drive in which nobody drives: no test of driving, and no fault of the data."""


@dataclass(frozen=True)
class Scene:
    """A drive to take part in.

    Attributes:
        log: at 10 Hz, with an ego that is there at every stamp.
        surroundings: its map and the way to go.
        recorded: (T, 3) x, y and heading of the driver who recorded it, None where nobody did.
    """

    log: DrivingLog
    surroundings: Surroundings
    recorded: NDArray[np.float64] | None


def read_scenes(
    paths: Iterable[str | Path], *, min_distance: float
) -> tuple[list[Scene], list[DatasetError]]:
    """The scenes in files and folders of `open_logs`, and why each other one was passed over.

    Args:
        paths: of one format each.
        min_distance: see `scene_of`.

    Raises:
        DatasetError: when no scene is left; it names all faults.
    """
    scenes: list[Scene] = []
    faults: list[DatasetError] = []
    for path in paths:
        try:
            for log in open_logs(path, on_fault=faults.append):
                try:
                    scenes.append(scene_of(log, min_distance=min_distance))
                except DatasetError as fault:
                    faults.append(fault)
        except DatasetError as fault:
            faults.append(fault)
    if not scenes:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise DatasetError(f"there is no scene to drive in:{lines or ' no paths were given'}")
    return scenes, faults


def scene_of(log: DrivingLog, *, min_distance: float = 10.0) -> Scene:
    """A log as a scene; CommonRoad's get the ego of their first planning problem.

    Args:
        log: of any source and rate.
        min_distance: m that its ego must move, else it is parked and no test of driving; 2 at the
            least, for a route has a direction.

    Raises:
        DatasetError: naming the log, when it has no map, no ego, an ego that vanishes or is seen
            once, or one whose positions do not fit its headings or its map.
        ParkedError: its ego hardly moves.
    """
    driven = log.ego is not None
    if not any(f.kind == "lane" and not f.area and len(f.points) > 1 for f in log.map):
        raise DatasetError(f"{log.name} has no map with lanes to drive on")
    if not driven and log.metadata.get("planning_problems"):
        log = with_ego(log)
    if log.ego is None:
        raise DatasetError(f"{log.name} has no ego: nobody knows where to start")
    name = log.ego
    log = _centered(log, name) if log.source == "nuscenes" else log
    ego = log.tracks[name]
    if ego.valid.sum() < 2:
        raise DatasetError(f"{log.name}: its ego {name} was seen {ego.valid.sum()} times")
    if not ego.valid.all():
        at = float(log.stamps[ego.valid.argmin()] - log.stamps[0]) * 1e-9
        raise DatasetError(f"{log.name}: its ego {name} is not there at {at:.1f} s")
    log = _at_10_hz(log)
    _check_frame(log, log.tracks[name])
    log = retimed(log) if driven else log
    log = replace(log, tracks={key: t for key, t in log.tracks.items() if t.valid.any()})
    ego = log.tracks[name]
    moved = float(np.hypot(*np.diff(ego.position[:, :2], axis=0).T).sum())
    least = max(min_distance, 2.0)
    if moved < least:
        raise ParkedError(
            f"{log.name} is parked: its ego moves {moved:.1f} m, less than min_distance, {least:g}"
        )
    recorded = np.column_stack([ego.position[:, :2], ego.heading]) if driven else None
    return Scene(log, surroundings_of(log), recorded)


def _at_10_hz(log: DrivingLog) -> DrivingLog:
    """The log at 10 Hz, with the velocities that it leaves out."""
    span = int(log.stamps[-1] - log.stamps[0])
    log = log.at(log.stamps[0] + np.arange(span // TICK_NS + 1) * TICK_NS)
    if len(log) < 2:
        raise DatasetError(f"{log.name} lasts {span * 1e-9:.2f} s, too short to drive in")
    return replace(log, tracks={key: _with_velocity(track) for key, track in log.tracks.items()})


def _with_velocity(track: Track) -> Track:
    unknown = track.valid & ~np.isfinite(track.velocity).all(axis=1)
    if not unknown.any():
        return track
    seconds = np.flatnonzero(track.valid) * TICK_NS * 1e-9
    known = track.position[track.valid, :2]
    velocity = track.velocity.copy()
    moved = np.gradient(known, seconds, axis=0) if len(known) > 1 else np.zeros_like(known)
    velocity[unknown] = moved[unknown[track.valid]]
    return replace(track, velocity=velocity)


def _centered(log: DrivingLog, name: str) -> DrivingLog:
    """ScenarioNet's nuScenes logs have the ego's rear axle where the middle of its box should be;
    those of nuScenes itself know their rear axle, and are left as they are."""
    ego = log.tracks[name]
    if "rear_axle" in ego.properties:
        return log
    ahead = np.stack([np.cos(ego.heading), np.sin(ego.heading), 0 * ego.heading], axis=1)
    ego = replace(ego, position=ego.position + NUSCENES_CENTER_M * ahead)
    return replace(log, tracks={**log.tracks, name: ego})


def _check_frame(log: DrivingLog, ego: Track) -> None:
    """Whether positions, headings and the map can be of one right-handed frame in m and rad."""
    steps = np.diff(ego.position[:, :2], axis=0)
    distance = np.hypot(*steps.T)
    if distance.max() > FASTEST * TICK_NS * 1e-9:
        raise DatasetError(
            f"{log.name}: its ego jumps {distance.max():.0f} m in 0.1 s: positions must be in m"
        )
    moving = distance > 0.2
    turned = ego.heading[:-1] - np.arctan2(steps[:, 1], steps[:, 0])
    if moving.sum() > 5 and np.median(np.cos(turned[moving])) < 0.7:
        raise DatasetError(
            f"{log.name}: its ego moves across its heading: headings must be in rad, "
            "counter-clockwise from x, in the frame of the positions"
        )
    lanes = np.concatenate([f.points[:, :2] for f in log.map if f.kind == "lane"])
    route = route_of(log)[::4]
    gap = np.median([np.hypot(*(lanes - point).T).min() for point in route])
    if gap > FURTHEST_M:
        raise DatasetError(
            f"{log.name}: its ego drives {gap:.0f} m from any lane: the map is of another frame"
        )
