"""Drives of the Lyft Level 5 prediction data set (later Woven Planet): 25 s around Palo Alto each.

A zarr store of format 2 holds the records of all scenes one after the other: ``scenes`` point into
``frames`` (10 Hz, stamps in ns, pose of the recording vehicle), these into ``agents`` (boxes in m,
yaw in rad, velocity in m/s, probabilities of 17 labels) and ``traffic_light_faces``. Everything is
in one frame of the world, x east, y north, z up, m, whose place on the earth a ``meta.json`` beside
the store gives. Agents have no height: theirs is that of the recording vehicle.

Follows https://github.com/woven-planet/l5kit, ``l5kit/data/zarr_dataset.py`` (Houston et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import zarr_v2
from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.logs.sightings import check_size, track

__all__ = ["FACES", "read"]

FACES = ("active", "inactive", "unknown")
"""What the three numbers of a traffic light face are the probabilities of."""

EGO_SIZE = (4.87, 1.85, 1.80)  # l5kit's, of all its vehicles

_LABELS = (
    "not_set", "unknown", "dontcare", "car", "van", "tram", "bus", "truck", "emergency_vehicle",
    "other_vehicle", "bicycle", "motorcycle", "cyclist", "motorcyclist", "pedestrian", "animal",
    "dontcare",
)  # fmt: skip
_KINDS = {
    **dict.fromkeys((*_LABELS[3:10], "motorcycle", "motorcyclist"), "vehicle"),
    **dict.fromkeys(("bicycle", "cyclist"), "cyclist"),
    "pedestrian": "pedestrian",
}
# Field to the kinds of numbers, or words, that it may hold, and its shape.
_FIELDS: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "scenes": {"frame_index_interval": ("i", (2,)), "host": ("U", ()), "start_time": ("i", ())},
    "frames": {
        "timestamp": ("i", ()),
        "agent_index_interval": ("i", (2,)),
        "traffic_light_faces_index_interval": ("i", (2,)),
        "ego_translation": ("f", (3,)),
        "ego_rotation": ("f", (3, 3)),
    },
    "agents": {
        "centroid": ("f", (2,)),
        "extent": ("f", (3,)),
        "yaw": ("f", ()),
        "velocity": ("f", (2,)),
        "track_id": ("iu", ()),
        "label_probabilities": ("f", (len(_LABELS),)),
    },
    "traffic_light_faces": {
        "face_id": ("U", ()),
        "traffic_light_id": ("U", ()),
        "traffic_light_face_status": ("f", (len(FACES),)),
    },
}


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """Read the scenes of one store or several.

    Each log has the track ``ego`` (its velocity is that of its positions) and one a ``track_id``,
    of the label that is likeliest over all its boxes, with the middle one of their sizes. Signals
    are the faces of traffic lights: id to ``traffic_light`` and ``status`` (T, 3) as in `FACES`,
    nan where a face was not seen; their colors are in the source's map alone.

    Args:
        path: a ``.zarr`` folder, a zip of one, or a folder of such.
        on_fault: told of a store, or a scene, that cannot be read.
    """
    path = Path(path)
    with os_errors_are_faults():
        many = path.is_dir() and not (path / ".zgroup").is_file()
    stores = sorted(path.glob("?*.zarr*")) if many else [path]
    if not stores:
        on_fault(DatasetError(f"{path} holds no .zarr store"))
    for store in stores:
        try:
            arrays = _arrays(zarr_v2.open(store), store)
            scenes = arrays["scenes"][:]
        except DatasetError as fault:
            on_fault(fault)
            continue
        for index in range(len(scenes)):
            try:
                yield _read_scene(arrays, scenes[index], f"{store}: scene {index}")
            except DatasetError as fault:
                on_fault(fault)


def _arrays(root: zarr_v2.Group, store: Path) -> dict[str, zarr_v2.Array]:
    arrays = {name: root.array(name) for name in _FIELDS}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise DatasetError(f"{store}: {name} is of shape {array.shape}, expected (N,)")
        for field, (kinds, shape) in _FIELDS[name].items():
            found = array.dtype[field] if field in (array.dtype.names or ()) else None
            if found is None or found.base.kind not in kinds or found.shape != shape:
                raise DatasetError(
                    f"{store}: {field!r} of {name} is {found}; expected a number or word of kind "
                    f"{kinds} and shape {shape}"
                )
    return arrays


def _read_scene(arrays: Mapping[str, zarr_v2.Array], scene: Any, where: str) -> DrivingLog:
    first, last = scene["frame_index_interval"].tolist()
    if not 0 <= first < last <= len(arrays["frames"]):
        raise DatasetError(f"{where} has frames {first} to {last} of {len(arrays['frames'])}")
    frames = arrays["frames"][first:last]
    agents, at = _rows(arrays["agents"], frames["agent_index_interval"], where)
    faces, shown = _rows(
        arrays["traffic_light_faces"], frames["traffic_light_faces_index_interval"], where
    )
    try:
        host, start = str(scene["host"]), int(scene["start_time"])
        signals = _faces(faces, shown, len(frames), where)
        return DrivingLog(
            name=f"{host}/{start}",
            source="lyft_level_5",
            frame="world of Lyft Level 5: x east, y north, z up, m, about Palo Alto",
            stamps=frames["timestamp"].astype(np.int64),
            ego="ego",
            tracks={"ego": _ego(frames, where), **_agents(agents, at, frames, where)},
            signals=signals,
            metadata={"host": host, "start_ns": start},
        )
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def _rows(
    array: zarr_v2.Array, intervals: NDArray[np.int64], where: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The rows of all frames, and the frame of each."""
    starts, ends = intervals[:, 0], intervals[:, 1]
    if (starts > ends).any() or (starts[1:] < ends[:-1]).any() or starts[0] < 0:
        raise DatasetError(f"{where}: the rows of its frames overlap or go backwards")
    if ends[-1] > len(array):
        raise DatasetError(f"{where}: its frames have rows up to {ends[-1]} of {len(array)}")
    counts = ends - starts
    at = np.repeat(np.arange(len(starts)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return array[int(starts[0]) : int(ends[-1])][starts[at] - starts[0] + offsets], at


def _ego(frames: NDArray[Any], where: str) -> Track:
    position = frames["ego_translation"].astype(np.float64)
    rotation, seconds = frames["ego_rotation"], (frames["timestamp"] - frames["timestamp"][0]) / 1e9
    if (
        not (np.isfinite(rotation).all() and np.isfinite(position).all())
        or (np.diff(seconds) <= 0).any()
    ):
        raise DatasetError(f"{where}: its poses are not finite or its stamps do not rise")
    velocity = np.full((len(frames), 2), np.nan)
    if len(frames) > 1:
        velocity = np.gradient(position[:, :2], seconds, axis=0)
    return Track(
        kind="vehicle",
        position=position,
        heading=np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]).astype(np.float64),
        velocity=velocity,
        size=np.array(EGO_SIZE),
        valid=np.ones(len(frames), np.bool_),
        category="ego",
    )


def _agents(
    agents: NDArray[Any], at: NDArray[np.int64], frames: NDArray[Any], where: str
) -> dict[str, Track]:
    order = np.argsort(agents["track_id"], kind="stable")
    ids, starts = np.unique(agents["track_id"][order], return_index=True)
    check_size(len(ids), len(frames), where)
    height = frames["ego_translation"][:, 2]
    tracks: dict[str, Track] = {}
    for key, rows in zip(ids, np.split(order, starts[1:]), strict=True):
        boxes, when = agents[rows], at[rows]
        category = _LABELS[int(boxes["label_probabilities"].sum(axis=0).argmax())]
        tracks[str(key)] = track(
            len(frames),
            when,
            kind=_KINDS.get(category, "other"),
            position=np.column_stack([boxes["centroid"], height[when]]),
            heading=boxes["yaw"].astype(np.float64),
            velocity=boxes["velocity"].astype(np.float64),
            size=np.median(boxes["extent"], axis=0).astype(np.float64),
            category=category,
        )
    return tracks


def _faces(
    faces: NDArray[Any], at: NDArray[np.int64], steps: int, where: str
) -> dict[str, dict[str, Any]]:
    ids, first, owner = np.unique(faces["face_id"], return_index=True, return_inverse=True)
    check_size(len(ids), steps, where)
    status = np.full((len(ids), steps, len(FACES)), np.nan, np.float32)
    status[owner, at] = faces["traffic_light_face_status"]
    return {
        str(key): {"traffic_light": str(faces["traffic_light_id"][row]), "status": status[index]}
        for index, (key, row) in enumerate(zip(ids, first, strict=True))
    }
