"""Argoverse 2's motion-forecasting scenarios and sensor logs, read without its own package.

Both are in the frame of a city (right-handed, z up, m, rad, m/s; Wilson et al., 2021,
https://github.com/argoverse/av2-api). A forecasting scenario is a folder with
``scenario_<id>.parquet`` (110 steps at 10 Hz, positions without height or box) and
``log_map_archive_<id>.json``. A sensor log is a folder with ``annotations.feather`` (boxes in the
frame of the vehicle, whose origin is the middle of its rear axle, at the stamps of the lidar, 10
Hz), ``city_SE3_egovehicle.feather`` (poses of that frame) and, there or in ``map/``, the same map.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.logs import sightings
from fastloop.extras import require

__all__ = ["is_log", "read"]

EGO = "AV"
KINDS = {
    **dict.fromkeys(
        ["VEHICLE", "BUS", "REGULAR_VEHICLE", "LARGE_VEHICLE", "BOX_TRUCK", "TRUCK", "TRUCK_CAB",
         "VEHICULAR_TRAILER", "SCHOOL_BUS", "ARTICULATED_BUS", "MESSAGE_BOARD_TRAILER",
         "TRAFFIC_LIGHT_TRAILER", "RAILED_VEHICLE"], "vehicle"
    ),
    **dict.fromkeys(["PEDESTRIAN", "OFFICIAL_SIGNALER", "WHEELCHAIR"], "pedestrian"),
    **dict.fromkeys(["CYCLIST", "MOTORCYCLIST", "BICYCLIST", "WHEELED_RIDER"], "cyclist"),
    **dict.fromkeys(["CONSTRUCTION_CONE", "CONSTRUCTION_BARREL"], "cone"),
}  # fmt: skip
LANES = {"VEHICLE": "LANE_SURFACE_STREET", "BUS": "LANE_SURFACE_STREET", "BIKE": "LANE_BIKE_LANE"}
MARKS = {
    "DASHED_WHITE": "BROKEN_SINGLE_WHITE", "SOLID_WHITE": "SOLID_SINGLE_WHITE",
    "DOUBLE_SOLID_WHITE": "SOLID_DOUBLE_WHITE", "DASHED_YELLOW": "BROKEN_SINGLE_YELLOW",
    "SOLID_YELLOW": "SOLID_SINGLE_YELLOW", "DOUBLE_SOLID_YELLOW": "SOLID_DOUBLE_YELLOW",
    "DOUBLE_DASH_YELLOW": "BROKEN_DOUBLE_YELLOW", "SOLID_DASH_YELLOW": "PASSING_DOUBLE_YELLOW",
    "DASH_SOLID_YELLOW": "PASSING_DOUBLE_YELLOW",
}  # fmt: skip
CENTER_POINTS = 10  # of a lane of which only the boundaries are given, as av2 makes them

SCENARIO = {
    "track_id": "words", "object_type": "words", "object_category": "integers",
    "timestep": "integers", "observed": "truths", "position_x": "numbers", "position_y": "numbers",
    "heading": "numbers", "velocity_x": "numbers", "velocity_y": "numbers", "scenario_id": "words",
    "start_timestamp": "numbers", "end_timestamp": "numbers", "num_timestamps": "integers",
    "focal_track_id": "words", "city": "words",
}  # fmt: skip
QUATERNION, TRANSLATION = ("qx", "qy", "qz", "qw"), ("tx_m", "ty_m", "tz_m")
POSES = {"timestamp_ns": "integers", **dict.fromkeys([*QUATERNION, *TRANSLATION], "numbers")}
SIZE = ("length_m", "width_m", "height_m")
CUBOIDS = {
    **POSES, **dict.fromkeys(SIZE, "numbers"), "track_uuid": "words", "category": "words",
}  # fmt: skip

Table = Mapping[str, NDArray[Any]]


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """The logs of a scenario, of a sensor log, or of a folder of either.

    Boxes of a sensor log are carried into the city by the pose at their stamp; its ego is `EGO`,
    whose position is that of the middle of its rear axle and whose size is not told. Velocities
    there are differences of positions. In a scenario the ego is `EGO`, too; its ``metadata`` has
    ``focal_track_id``, the track to forecast, and ``observed_steps``, those to do so from. A lane
    comes with its boundaries as ``outline``; a marked boundary that two lanes share is one line.

    Args:
        path: the folder, or a scenario's parquet file.
        on_fault: told of each log that cannot be read, which is then passed over.

    Raises:
        DatasetError: where there is nothing to read, and by `raise_fault`.
        MissingExtraError: without pyarrow.
    """
    path = Path(path)
    require("pyarrow", extra="data")
    with os_errors_are_faults():
        if path.is_file():
            path = path.parent
        if not path.is_dir():
            raise DatasetError(f"{path} does not exist")
        folders = [path] if is_log(path) else sorted(filter(is_log, path.iterdir()))
    if not folders:
        raise DatasetError(
            f"neither {path} nor a folder in it holds scenario_<id>.parquet or annotations.feather"
        )
    for folder in folders:
        try:
            log = _scenario(folder) if _scenario_file(folder) else _sensor_log(folder)
        except DatasetError as fault:
            on_fault(fault)
        else:
            yield log


def is_log(folder: Path) -> bool:
    """Whether a folder holds a scenario or a sensor log."""
    return folder.is_dir() and bool(
        _scenario_file(folder) or (folder / "annotations.feather").exists()
    )


def _scenario_file(folder: Path) -> Path | None:
    return min(folder.glob("scenario_*.parquet"), default=None)


def _scenario(folder: Path) -> DrivingLog:
    file = _scenario_file(folder)
    assert file is not None
    table = _table(file, SCENARIO)
    once = {name: values[0] for name, values in table.items()}
    steps, rows_of = int(once["num_timestamps"]), _rows(table["track_id"])
    sightings.check_size(len(rows_of), steps, str(file))
    if steps < 1 or not ((table["timestep"] >= 0) & (table["timestep"] < steps)).all():
        raise DatasetError(f"{file}: a timestep is not within its {steps}")
    for name in ("scenario_id", "num_timestamps", "start_timestamp", "end_timestamp"):
        if (table[name] != once[name]).any():
            raise DatasetError(f"{file}: {name} is not the same in all rows")
    span = once["end_timestamp"] - once["start_timestamp"]
    if not (abs(once["start_timestamp"]) < 2**62 and steps - 1 <= span < 2**62):
        raise DatasetError(f"{file}: its timestamps are no nanoseconds of {steps} steps")
    tracks = {}
    for name, rows in rows_of.items():
        track = {key: values[rows] for key, values in table.items()}
        seen = sightings.track(
            steps,
            track["timestep"],
            kind=KINDS.get(track["object_type"][0].upper(), "other"),
            position=np.stack([track["position_x"], track["position_y"], 0 * track["heading"]], 1),
            heading=track["heading"],
            velocity=np.stack([track["velocity_x"], track["velocity_y"]], axis=1),
            size=np.full(3, np.nan),
            category=track["object_type"][0],
        )
        category = int(track["object_category"][0])
        tracks[name] = replace(seen, properties={"object_category": category})
    observed = table["timestep"][table["observed"]]
    features, _city = _map(folder)
    return DrivingLog(
        name=once["scenario_id"],
        source="argoverse2",
        frame=f"city frame of {once['city']}",
        stamps=int(once["start_timestamp"])
        + np.round(np.linspace(0, span, steps)).astype(np.int64),
        ego=EGO if EGO in tracks else None,
        tracks=tracks,
        map=features,
        metadata={
            "city": once["city"],
            "focal_track_id": once["focal_track_id"],
            "observed_steps": int(observed.max()) + 1 if len(observed) else 0,
        },
    )


def _sensor_log(folder: Path) -> DrivingLog:
    file = folder / "annotations.feather"
    boxes, poses = _table(file, CUBOIDS), _table(folder / "city_SE3_egovehicle.feather", POSES)
    stamps, at = np.unique(boxes["timestamp_ns"], return_inverse=True)
    pose_stamps, first = np.unique(poses["timestamp_ns"], return_index=True)
    found = np.minimum(np.searchsorted(pose_stamps, stamps), len(pose_stamps) - 1)
    if (missing := stamps[pose_stamps[found] != stamps]).size:
        raise DatasetError(f"{folder}: no pose at the stamp {missing[0]} of its annotations")
    rows = _rows(boxes["track_uuid"])
    sightings.check_size(len(rows) + 1, len(stamps), str(file))
    seconds = (stamps - stamps[0]) * 1e-9
    rotation, origin = _frames(folder, {key: values[first[found]] for key, values in poses.items()})
    box_rotation, box_center = _frames(file, boxes)
    center = origin[at] + rotation[at].apply(box_center)
    heading = _yaw(rotation[at] * box_rotation)
    tracks = {
        name: sightings.track(
            len(stamps),
            at[own],
            kind=KINDS.get(boxes["category"][own[0]], "other"),
            position=center[own],
            heading=heading[own],
            velocity=_velocity(center[own], seconds[at[own]]),
            size=np.array([np.median(boxes[side][own]) for side in SIZE]),
            category=boxes["category"][own[0]],
        )
        for name, own in rows.items()
    }
    tracks[EGO] = Track(
        kind="vehicle",
        position=origin,
        heading=_yaw(rotation),
        velocity=_velocity(origin, seconds),
        size=np.full(3, np.nan),
        valid=np.ones(len(stamps), bool),
        category="EGO_VEHICLE",
        properties={"reference_point": "rear axle"},
    )
    features, city = _map(folder)
    return DrivingLog(
        name=folder.resolve().name,
        source="argoverse2",
        frame=f"city frame of {city}" if city else "city frame",
        stamps=stamps,
        ego=EGO,
        tracks=tracks,
        map=features,
        metadata={"city": city} if city else {},
    )


def _velocity(position: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) m/s of (N, 3) m in the order of their stamps; nan where there is one alone."""
    if len(position) < 2 or (np.diff(seconds) <= 0).any():
        return np.full((len(position), 2), np.nan)
    return np.gradient(position[:, :2], seconds, axis=0)


def _frames(where: Path, table: Table) -> tuple[Rotation, NDArray[np.float64]]:
    quaternion = np.stack([table[name] for name in QUATERNION], axis=1)
    translation = np.stack([table[name] for name in TRANSLATION], axis=1)
    norm = np.linalg.norm(quaternion, axis=1)
    if not (np.abs(norm - 1) < 0.01).all() or not np.isfinite(translation).all():
        raise DatasetError(f"{where}: a pose is no rotation by a unit quaternion and a translation")
    return Rotation.from_quat(quaternion), translation


def _yaw(rotation: Rotation) -> NDArray[np.float64]:
    forward = rotation.apply([1.0, 0.0, 0.0])
    return np.arctan2(forward[:, 1], forward[:, 0])


def _rows(names: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """The rows of each name, in the order in which the names appear."""
    values, inverse = np.unique(names, return_inverse=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return {str(values[i]): groups[i] for i in np.argsort([group[0] for group in groups])}


def _table(file: Path, columns: Mapping[str, str]) -> Table:
    """The columns of a parquet or feather file, checked to be what `columns` says they are."""
    pyarrow = require("pyarrow", extra="data")
    types = require("pyarrow.types", extra="data")
    if not file.is_file():
        raise DatasetError(f"{file} does not exist")
    checks = {
        "words": lambda kind: types.is_string(kind) or types.is_large_string(kind),
        "numbers": types.is_floating,
        "integers": types.is_integer,
        "truths": types.is_boolean,
    }
    try:
        table = _arrow(file, list(columns))
        table.validate(full=True)
        arrays = {}
        for name, kind in columns.items():
            column = table.column(name)
            if not checks[kind](column.type) or column.null_count:
                raise DatasetError(f"{name} holds {column.type} or nothing; expected {kind}")
            if kind == "words":
                arrays[name] = np.array(column.to_pylist(), dtype=object)
            else:
                dtype = {"numbers": np.float64, "integers": np.int64, "truths": bool}[kind]
                arrays[name] = column.to_numpy().astype(dtype)
    except (pyarrow.ArrowException, KeyError, MemoryError, OSError, ValueError) as error:
        raise DatasetError(f"{file} is damaged or of another layout: {error!s:.200}") from error
    if not len(table):
        raise DatasetError(f"{file} holds no rows")
    return arrays


def _arrow(file: Path, columns: Sequence[str]) -> Any:
    pyarrow = require("pyarrow", extra="data")
    if file.suffix == ".feather":
        with pyarrow.OSFile(str(file)) as source:
            return pyarrow.ipc.open_file(source).read_all().select(columns)
    parquet = require("pyarrow.parquet", extra="data")
    with parquet.ParquetFile(file) as opened:
        if opened.metadata.num_rows > file.stat().st_size:
            raise DatasetError(f"it claims {opened.metadata.num_rows} rows, more than its bytes")
        return opened.read(columns)


def _map(folder: Path) -> tuple[tuple[MapFeature, ...], str]:
    """The map of a log and the city in its file's name; nothing where there is none."""
    found = [*folder.glob("log_map_archive_*.json"), *folder.glob("map/log_map_*.json")]
    file = min(filter(Path.is_file, found), default=None)
    if file is None:
        return (), ""
    try:
        archive = json.loads(file.read_bytes())
        lanes, lines = [], {}
        for lane in archive["lane_segments"].values():
            lanes.append(_lane(lane))
            for line in _lines(lane):
                # Lanes beside each other share a line, which one of them may have backwards.
                ends = sorted([line.points.tobytes(), line.points[::-1].tobytes()])
                lines.setdefault((ends[0], line.category), line)
        areas = [
            *(_area("drivable", area["id"], area["area_boundary"])
              for area in archive["drivable_areas"].values()),
            *(_area("crosswalk", area["id"], [*area["edge1"], *area["edge2"][::-1]])
              for area in archive["pedestrian_crossings"].values()),
        ]  # fmt: skip
    except (
        AttributeError, KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise DatasetError(f"{file} is no map that can be read: {error!r:.200}") from error
    city = file.stem.partition("____")[2].partition("_city_")[0]
    return (*lanes, *lines.values(), *areas), city


def _area(kind: str, name: Any, outline: Sequence[Mapping[str, float]]) -> MapFeature:
    points = _points(outline)
    if len(points) > 1 and (points[0] == points[-1]).all():
        points = points[:-1]
    return MapFeature(kind, points, area=True, id=str(name), category=kind.upper())


def _lane(lane: Mapping[str, Any]) -> MapFeature:
    left, right = _points(lane["left_lane_boundary"]), _points(lane["right_lane_boundary"])
    if "centerline" in lane:
        center = _points(lane["centerline"])
    else:
        center = (_resampled(left) + _resampled(right)) / 2
    return MapFeature(
        "lane",
        center,
        id=str(lane["id"]),
        category=LANES.get(str(lane["lane_type"]), "LANE_UNKNOWN"),
        outline=np.concatenate([left, right[::-1]]),
        properties={
            "lane_type": str(lane["lane_type"]),
            "is_intersection": bool(lane["is_intersection"]),
            "left_mark": str(lane["left_lane_mark_type"]),
            "right_mark": str(lane["right_lane_mark_type"]),
            "entry_lanes": [str(other) for other in lane["predecessors"]],
            "exit_lanes": [str(other) for other in lane["successors"]],
            "left_neighbor": _neighbor(lane["left_neighbor_id"]),
            "right_neighbor": _neighbor(lane["right_neighbor_id"]),
        },
    )


def _neighbor(name: Any) -> list[str]:
    return [] if name is None else [str(name)]


def _lines(lane: Mapping[str, Any]) -> Iterator[MapFeature]:
    for side in ("left", "right"):
        mark = str(lane[f"{side}_lane_mark_type"])
        if mark != "NONE":
            yield MapFeature(
                "lane_line",
                _points(lane[f"{side}_lane_boundary"]),
                id=f"{lane['id']}_{side}",
                category=f"ROAD_LINE_{MARKS[mark]}" if mark in MARKS else mark,
            )


def _points(points: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    array = np.array([[point["x"], point["y"], point["z"]] for point in points])
    if array.dtype.kind not in "if" or not len(array):
        raise DatasetError(f"{points!r:.60} are no points")
    return array.astype(np.float64)


def _resampled(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """(CENTER_POINTS, 3) at equal distances along a line of (N, 3)."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    wanted = np.linspace(0, along[-1], CENTER_POINTS)
    return np.stack([np.interp(wanted, along, axis) for axis in line.T], axis=1)
