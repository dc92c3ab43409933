"""The 13 tables of a nuScenes root as columns: keyframes in order, with their poses and boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.datasets.nuscenes.poses import pose_matrices
from fastloop.datasets.nuscenes.splits import scene_names
from fastloop.datasets.nuscenes.table import Table

__all__ = ["NAMES", "Annotations", "CameraData", "SceneRow", "Tables", "read_tables"]

NAMES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
    "sample_annotation", "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip


@dataclass(frozen=True)
class SceneRow:
    """One drive of 20 s: its keyframes are the samples ``first`` to ``last``, `last` excluded."""

    token: str
    name: str
    description: str
    location: str
    first: int
    last: int


@dataclass(frozen=True)
class CameraData:
    """One camera's picture at a keyframe.

    Attributes:
        path: of the JPEG, relative to the root.
        height, width: of the picture in pixels.
        intrinsic: (3, 3) pixels.
        extrinsic: (4, 4) camera (x right, y down, z forward) to vehicle.
        ego_pose: (4, 4) vehicle to map when the picture was taken.
    """

    path: str
    height: int
    width: int
    intrinsic: NDArray[np.float64]
    extrinsic: NDArray[np.float64]
    ego_pose: NDArray[np.float64]


@dataclass(frozen=True)
class Annotations:
    """The boxes of all samples, those of a sample together.

    Attributes:
        tokens: of the M annotations.
        starts: (N + 1,) the boxes of sample i are ``starts[i]`` to ``starts[i + 1]``.
        sample: (M,) its sample.
        instance: (M,) index in `instances`.
        instances: tokens.
        category: (M,) index in `categories`.
        categories: names, for instance ``vehicle.car``.
        visibility: (M,) 1 (below 40 % to be seen) to 4 (over 80 %); 0 where it is not said.
        center: (M, 3) m in the map's frame.
        size: (M, 3) length, width, height in m.
        rotation: (M, 4) quaternion w, x, y, z: box to map, x along the length.
        lidar_points, radar_points: (M,) that fell into it.
        following: (M,) the next box of the same instance, -1 for its last.
    """

    tokens: Sequence[str]
    starts: NDArray[np.int64]
    sample: NDArray[np.int64]
    instance: NDArray[np.int64]
    instances: Sequence[str]
    category: NDArray[np.int64]
    categories: Sequence[str]
    visibility: NDArray[np.int64]
    center: NDArray[np.float64]
    size: NDArray[np.float64]
    rotation: NDArray[np.float64]
    lidar_points: NDArray[np.int64]
    radar_points: NDArray[np.int64]
    following: NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """The keyframes of a split.

    Attributes:
        scenes: in the order of the tables.
        absent: scenes of the split that the tables lack.
        tokens: of the N samples, scene after scene, in the order of time.
        scene: (N,) index in `scenes`.
        stamps_us: (N,) int64 microseconds.
        ego_pose: (N, 4, 4) vehicle (rear axle) to map when the sample's LIDAR_TOP swept.
        lidar_pose: (N, 4, 4) LIDAR_TOP (x right, y forward) to map.
        lidar_paths: of the sweeps, relative to the root.
        cameras: of each sample, by channel, for instance ``CAM_FRONT``.
        boxes: the annotations.
    """

    scenes: Sequence[SceneRow]
    absent: Sequence[str]
    tokens: Sequence[str]
    scene: NDArray[np.int64]
    stamps_us: NDArray[np.int64]
    ego_pose: NDArray[np.float64]
    lidar_pose: NDArray[np.float64]
    lidar_paths: Sequence[str]
    cameras: Callable[[int], dict[str, CameraData]]
    boxes: Annotations


@os_errors_are_faults()
def read_tables(root: Path, version: str, split: str | None = None) -> Tables:
    """The keyframes of a split, checked.

    What other splits hold is passed over as it is read, so val costs the memory of val.

    Args:
        root: the folder that holds the folder `version`.
        version: for instance ``v1.0-trainval``.
        split: an official split, or None for all scenes.

    Raises:
        DatasetError: tables are missing (all are named), damaged or contradict each other: names
            table, row and token.
    """
    folder = root / version
    missing = [name for name in NAMES if not (folder / f"{name}.json").is_file()]
    if missing:
        files = ", ".join(f"{name}.json" for name in missing)
        raise DatasetError(f"{folder} lacks {files}: root and version name a nuScenes release")

    scene, log, every = (Table(folder, name) for name in ("scene", "log", "sample"))
    place = scene.references("log_token", log)
    names = scene_names(split) if split is not None else {row.name for row in scene.rows}
    home = every.references("scene_token", scene)
    wanted = [i for i, row in enumerate(scene.rows) if row.name in names]
    if not wanted:
        raise DatasetError(f"{folder} holds no scene of {split or 'any split'}")
    order: list[int] = []
    scenes = []
    for i in wanted:
        first = len(order)
        order += _chain(scene, i, every, home)
        row = scene.rows[i]
        location = log.rows[place[i]].location
        scenes.append(SceneRow(row.token, row.name, row.description, location, first, len(order)))
    sample = {every.rows[i].token: k for k, i in enumerate(order)}
    known = every.index

    poses = _Poses(folder, sample, known)
    return Tables(
        scenes=scenes,
        absent=sorted(names - {scene.name for scene in scenes}),
        tokens=list(sample),
        scene=np.repeat(np.arange(len(scenes)), [s.last - s.first for s in scenes]),
        stamps_us=every.integers("timestamp")[order],
        ego_pose=poses.ego,
        lidar_pose=poses.lidar,
        lidar_paths=poses.paths,
        cameras=poses.cameras,
        boxes=_annotations(folder, sample, known),
    )


def _chain(scene: Table, i: int, sample: Table, home: NDArray[np.int64]) -> list[int]:
    """The samples of scene `i`, from its first along `next`."""
    row = scene.rows[i]
    order: list[int] = []
    seen = set()
    token, before = row.first_sample_token, ""
    while token:
        at = sample.index.get(token)
        if at is None:
            raise scene.fault(i, f"its chain of samples leads to {token!r}, which is none")
        if at in seen:
            raise scene.fault(i, f"its chain of samples comes back to {token!r}")
        if sample.rows[at].prev != before or home[at] != i:
            raise sample.fault(at, f"does not follow {before or 'the start'!r} in scene {row.name}")
        if order and sample.rows[at].timestamp <= sample.rows[order[-1]].timestamp:
            raise sample.fault(at, "is not later than the sample before it")
        seen.add(at)
        order.append(at)
        token, before = sample.rows[at].next, token
    if before != row.last_sample_token or len(order) != row.nbr_samples:
        raise scene.fault(
            i,
            f"its chain of samples has {len(order)} and ends at {before!r}, where the scene says "
            f"{row.nbr_samples} and {row.last_sample_token!r}",
        )
    if len(order) != np.count_nonzero(home == i):
        raise scene.fault(i, "some of its samples are not in its chain")
    return order


class _Poses:
    """Where the vehicle, its lidar and its cameras were at each keyframe."""

    def __init__(self, folder: Path, sample: dict[str, int], known: dict[str, int]) -> None:
        sensor, calibrated = Table(folder, "sensor"), Table(folder, "calibrated_sensor")
        channels = [sensor.rows[i] for i in calibrated.references("sensor_token", sensor)]
        useful = {
            row.token: channel.channel == "LIDAR_TOP" or channel.modality == "camera"
            for row, channel in zip(calibrated.rows, channels, strict=True)
        }

        def keep(row: Any) -> bool:
            known[row.sample_token]
            return (
                useful[row.calibrated_sensor_token]
                and row.is_key_frame
                and row.sample_token in sample
            )

        data = Table(folder, "sample_data", keep)
        used = {row.ego_pose_token for row in data.rows}
        pose = Table(folder, "ego_pose", lambda row: row.token in used)
        at = data.references("ego_pose_token", pose)
        by = data.references("calibrated_sensor_token", calibrated)
        self._pose = pose_matrices(pose.numbers("translation", 3), pose.numbers("rotation", 4))
        self._mount = pose_matrices(
            calibrated.numbers("translation", 3), calibrated.numbers("rotation", 4)
        )
        self._intrinsic = [_intrinsic(calibrated, i) for i in range(len(calibrated))]

        lidar = np.full(len(sample), -1)
        self._cameras: list[dict[str, tuple[Any, ...]]] = [{} for _ in sample]
        for i, row in enumerate(data.rows):
            k, channel = sample[row.sample_token], channels[by[i]].channel
            if channel != "LIDAR_TOP":
                self._cameras[k][channel] = (
                    row.filename,
                    row.height,
                    row.width,
                    int(by[i]),
                    int(at[i]),
                )
            elif lidar[k] >= 0:
                raise data.fault(i, f"sample {row.sample_token!r} has another LIDAR_TOP keyframe")
            else:
                lidar[k] = i
        if (lidar < 0).any():
            token = list(sample)[int(np.argmax(lidar < 0))]
            raise DatasetError(f"sample_data.json: sample {token!r} has no LIDAR_TOP keyframe")
        self.paths = [data.rows[i].filename for i in lidar]
        self.ego = self._pose[at[lidar]]
        self.lidar = self.ego @ self._mount[by[lidar]]

    def cameras(self, k: int) -> dict[str, CameraData]:
        return {
            channel: CameraData(
                path, height, width, self._intrinsic[by], self._mount[by], self._pose[at]
            )
            for channel, (path, height, width, by, at) in self._cameras[k].items()
        }


def _intrinsic(calibrated: Table, i: int) -> NDArray[np.float64]:
    rows = calibrated.rows[i].camera_intrinsic
    if rows and [len(row) for row in rows] != [3, 3, 3]:
        raise calibrated.fault(i, "camera_intrinsic is neither empty nor 3 x 3")
    matrix = np.array(rows, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(matrix).all():
        raise calibrated.fault(i, "camera_intrinsic holds a number that is not finite")
    return matrix


def _annotations(folder: Path, sample: dict[str, int], known: dict[str, int]) -> Annotations:
    def keep(row: Any) -> bool:
        known[row.sample_token]
        return row.sample_token in sample

    table = Table(folder, "sample_annotation", keep)
    used = {row.instance_token for row in table.rows}
    category, visibility = Table(folder, "category"), Table(folder, "visibility")
    instance = Table(folder, "instance", lambda row: row.token in used)
    levels = np.array([_level(visibility, i) for i in range(len(visibility))] + [0])

    where = np.array([sample[row.sample_token] for row in table.rows], dtype=np.int64)
    who = table.references("instance_token", instance)
    following = table.references("next", table, empty=True)
    previous = table.references("prev", table, empty=True)
    linked = np.flatnonzero(following >= 0)
    after = following[linked]
    wrong = np.zeros(len(table), dtype=bool)
    wrong[linked] = (previous[after] != linked) | (who[after] != who[linked])
    wrong[linked] |= where[after] <= where[linked]  # neither back in time nor in a circle
    table.refuse(wrong, "its next box is not of the same instance, later, and linked back")
    loose = previous >= 0
    loose[after] = False
    table.refuse(loose, "its previous box does not link to it")
    size = table.numbers("size", 3)
    table.refuse((size <= 0).any(axis=1), "size is not positive")

    order = np.argsort(where, kind="stable")
    place = np.full(len(table) + 1, -1)  # place[-1] stays -1: no next box
    place[order] = np.arange(len(table))
    rows = table.rows
    return Annotations(
        tokens=[rows[i].token for i in order],
        starts=np.searchsorted(where[order], np.arange(len(sample) + 1)),
        sample=where[order],
        instance=who[order],
        instances=[row.token for row in instance.rows],
        category=instance.references("category_token", category)[who[order]],
        categories=[row.name for row in category.rows],
        visibility=levels[table.references("visibility_token", visibility, empty=True)][order],
        center=table.numbers("translation", 3)[order],
        size=size[order][:, [1, 0, 2]],
        rotation=table.numbers("rotation", 4)[order],
        lidar_points=table.integers("num_lidar_pts")[order],
        radar_points=table.integers("num_radar_pts")[order],
        following=place[following[order]],
    )


def _level(visibility: Table, i: int) -> int:
    token = visibility.rows[i].token
    if token not in ("1", "2", "3", "4"):
        raise visibility.fault(i, "the tokens of visibility are 1 to 4")
    return int(token)
