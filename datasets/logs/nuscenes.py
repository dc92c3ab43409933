"""Drives of nuScenes: 20 s each in Boston or Singapore, annotated at 2 Hz.

Follows https://github.com/nutonomy/nuscenes-devkit (Caesar et al. 2020): ``box_velocity`` for
velocities. The tables are read by `fastloop.datasets.nuscenes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.logs.sightings import check_size, track
from fastloop.datasets.nuscenes.maps import open_map
from fastloop.datasets.nuscenes.poses import rotations, yaws
from fastloop.datasets.nuscenes.scenes import NuScenes

__all__ = ["read"]

EGO_SIZE = (4.084, 1.85, 1.562)  # of a Renault Zoe with its mirrors
CENTER_AHEAD_M = 1.44  # of its box, from the rear axle
AROUND_M = 80.0  # of the map, beyond the way driven
LONGEST_GAP = 1.5  # s between neighboring boxes of an object, beyond which it has no velocity

_KINDS = {
    "human": "pedestrian", "vehicle": "vehicle", "vehicle.bicycle": "cyclist",
    "movable_object.barrier": "barrier", "movable_object.trafficcone": "cone",
}  # fmt: skip


def read(
    path: str | Path,
    *,
    version: str | None = None,
    split: str | None = None,
    maps: str | Path | None = None,
    on_fault: OnFault = raise_fault,
) -> Iterator[DrivingLog]:
    """Read the scenes of a release, each with the keyframes as its stamps.

    The track ``ego`` is about the middle of the vehicle's box; `Track.properties` keep its rear
    axle (T, 3), which is the origin of ego poses. The others are the annotated instances.

    Args:
        path: the root of the data set, or its folder of tables (``v1.0-...``).
        version: of the tables, where the root holds several.
        split: an official split; None: all scenes.
        maps: folder of maps, where it is not ``maps`` in the root; without maps logs have none.
        on_fault: told of tables, maps or a scene that cannot be read.
    """
    path = Path(path)
    try:
        root, version = _release(path, version)
        data = NuScenes(root, version, split)
    except DatasetError as fault:
        on_fault(fault)
        return
    velocity = _box_velocities(data)
    for scene in range(len(data.tables.scenes)):
        try:
            yield _read_scene(data, scene, velocity, maps, on_fault)
        except DatasetError as fault:
            on_fault(fault)


@os_errors_are_faults()
def _release(path: Path, version: str | None) -> tuple[Path, str]:
    if version is not None:
        return path, version
    if (path / "scene.json").is_file():
        return path.parent, path.name
    found = sorted(folder.parent.name for folder in path.glob("*/scene.json"))
    if len(found) != 1:
        raise DatasetError(f"{path} holds {len(found)} releases ({', '.join(found)}): name one")
    return path, found[0]


def _read_scene(
    data: NuScenes,
    index: int,
    velocity: NDArray[np.float64],
    maps: str | Path | None,
    on_fault: OnFault,
) -> DrivingLog:
    tables, every = data.tables, data.tables.boxes
    scene = tables.scenes[index]
    steps = scene.last - scene.first
    rows = np.arange(every.starts[scene.first], every.starts[scene.last])
    order = rows[np.argsort(every.instance[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(every.instance[order])) + 1
    check_size(len(cuts) + 2, steps, scene.name)
    tracks = {"ego": _ego(data, scene.first, scene.last)}
    for boxes in np.split(order, cuts) if len(order) else []:
        category = every.categories[every.category[boxes[0]]]
        tracks[every.instances[every.instance[boxes[0]]]] = track(
            steps,
            every.sample[boxes] - scene.first,
            kind=_kind(category),
            position=every.center[boxes],
            heading=yaws(rotations(every.rotation[boxes])),
            velocity=velocity[boxes],
            size=np.median(every.size[boxes], axis=0),
            category=category,
        )
    return DrivingLog(
        name=scene.name,
        source="nuscenes",
        frame=f"map of {scene.location}: x east, y north, z up, m",
        stamps=tables.stamps_us[scene.first : scene.last] * 1000,
        ego="ego",
        tracks=tracks,
        map=_around(data, index, maps, on_fault),
        metadata={
            "token": scene.token,
            "description": scene.description,
            "location": scene.location,
            "samples": list(tables.tokens[scene.first : scene.last]),
        },
    )


def _kind(category: str) -> str:
    return _KINDS.get(category) or _KINDS.get(category.partition(".")[0], "other")


def _ego(data: NuScenes, first: int, last: int) -> Track:
    poses = data.tables.ego_pose[first:last]
    axle = poses[:, :3, 3]
    seconds = data.tables.stamps_us[first:last] / 1e6
    seconds = seconds - seconds[0]
    speed = np.full((len(axle), 2), np.nan)
    if len(axle) > 1:
        before = np.maximum(np.arange(len(axle)) - 1, 0)
        after = np.minimum(np.arange(len(axle)) + 1, len(axle) - 1)
        speed = (axle[after] - axle[before])[:, :2] / (seconds[after] - seconds[before])[:, None]
    return Track(
        kind="vehicle",
        position=axle + poses[:, :3, :3] @ [CENTER_AHEAD_M, 0, EGO_SIZE[2] / 2],
        heading=yaws(poses),
        velocity=speed,
        size=np.array(EGO_SIZE),
        valid=np.ones(len(axle), dtype=bool),
        category="ego",
        properties={"rear_axle": axle},
    )


def _box_velocities(data: NuScenes) -> NDArray[np.float64]:
    """(M, 2) m/s of all boxes, over the boxes of the same object before and after."""
    every = data.tables.boxes
    rows = np.arange(len(every.tokens))
    after = np.where(every.following >= 0, every.following, rows)
    linked = np.flatnonzero(every.following >= 0)
    before = rows.copy()
    before[every.following[linked]] = linked
    between = (after != rows).astype(int) + (before != rows)
    stamps = data.tables.stamps_us[every.sample]
    seconds = (stamps[after] - stamps[before]) / 1e6
    known = (between > 0) & (seconds <= LONGEST_GAP * between)
    moved = (every.center[after] - every.center[before])[:, :2]
    velocity = np.full((len(rows), 2), np.nan)
    velocity[known] = moved[known] / seconds[known, None]
    return velocity


def _around(
    data: NuScenes, index: int, maps: str | Path | None, on_fault: OnFault
) -> tuple[MapFeature, ...]:
    """The map around the way of a scene, where there is one."""
    scene = data.tables.scenes[index]
    try:
        there = open_map(data.root, scene.location, maps)
    except DatasetError as fault:
        on_fault(fault)
        return ()
    if there is None:
        return ()
    way = data.tables.ego_pose[scene.first : scene.last, :2, 3]
    low, high = way.min(axis=0), way.max(axis=0)
    reach = float((high - low).max() / 2 + AROUND_M)
    x, y = (low + high) / 2
    return there.window(float(x), float(y), reach)
