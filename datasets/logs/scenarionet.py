"""ScenarioNet's ScenarioDescription, the form of logs that MetaDrive replays.

A pickle holds one scenario (Li et al., 2023, https://github.com/metadriverse/scenarionet): tracks
and map in one right-handed frame of the world, m, rad and m/s, at the times ``metadata["ts"]`` in s
(10 Hz; the nuScenes scenes are interpolated from keyframes at 2 Hz). A folder holds many, listed in
``dataset_summary.pkl`` and ``dataset_mapping.pkl``, or named ``sd_*.pkl`` or by numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import pickles
from fastloop.datasets.driving_log import SIGNALS, DrivingLog, MapFeature, Signal, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault

__all__ = ["SUMMARY", "is_scenario_file", "read"]

SUMMARY, MAPPING = "dataset_summary.pkl", "dataset_mapping.pkl"
VERSION = "fastloop 1"

TRACKS = {
    "VEHICLE": "vehicle", "PEDESTRIAN": "pedestrian", "CYCLIST": "cyclist",
    "TRAFFIC_CONE": "cone", "TRAFFIC_BARRIER": "barrier",
}  # fmt: skip
SIZE = ("length", "width", "height")

LINES = [
    f"ROAD_LINE_{line}"
    for line in (
        "BROKEN_SINGLE_WHITE", "SOLID_SINGLE_WHITE", "SOLID_DOUBLE_WHITE", "BROKEN_SINGLE_YELLOW",
        "BROKEN_DOUBLE_YELLOW", "SOLID_SINGLE_YELLOW", "SOLID_DOUBLE_YELLOW",
        "PASSING_DOUBLE_YELLOW",
    )
]  # fmt: skip
# The first word of a kind is the one to write where the log has none of its own.
FEATURES = {
    **dict.fromkeys(
        ["LANE_SURFACE_STREET", "LANE_SURFACE_UNSTRUCTURE", "LANE_UNKNOWN", "LANE_FREEWAY",
         "LANE_BIKE_LANE"], "lane"
    ),
    **dict.fromkeys(["UNKNOWN_LINE", *LINES], "lane_line"),
    **dict.fromkeys(["ROAD_EDGE_BOUNDARY", "ROAD_EDGE_MEDIAN", "UNKNOWN"], "road_edge"),
    "ROAD_EDGE_SIDEWALK": "walkway", "CROSSWALK": "crosswalk", "STOP_SIGN": "stop_sign",
    "SPEED_BUMP": "speed_bump", "DRIVEWAY": "driveway",
}  # fmt: skip
OWN = "fastloop"  # in the metadata: what a scenario has no place for
RESERVED = ("dataset", "sdc_id", "ts", OWN)
OWN_TYPE = "FASTLOOP_"  # before the kinds that MetaDrive has no word for, and passes over
UNNAMED = "unnamed_"
# What a log says in other words.
FEATURE_KEYS = ("type", "category", "polyline", "polygon", "polygon_z", "position")
TRACK_METADATA = ("type", "object_id", "track_length", "assumed")
SIGNAL_METADATA = (*TRACK_METADATA, "signal_id")

LIGHTS: Mapping[Any, str | None] = {
    **{f"LANE_STATE_{state.upper()}": state for state in SIGNALS},
    "TRAFFIC_LIGHT_GREEN": "go", "TRAFFIC_LIGHT_YELLOW": "caution", "TRAFFIC_LIGHT_RED": "stop",
    "TRAFFIC_LIGHT_UNKNOWN": "unknown", None: None,
}  # fmt: skip


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """The logs of a scenario file, or of a folder of them.

    A size is the median over the stamps at which its track was seen. ``state`` among a track's
    properties holds what was recorded beside the pose, stamp by stamp. Of nuScenes, ScenarioNet
    gives the ego's rear axle as its position, and exchanges its length and width; they are
    exchanged back.

    Args:
        path: of a ``.pkl`` or of a folder; nothing that a pickle asks for is run.
        on_fault: told of each file that cannot be read, which is then passed over.

    Raises:
        DatasetError: where there is nothing to read, and by `raise_fault`.
    """
    for file in _files(Path(path), on_fault):
        try:
            log = _log(pickles.load(file))
        except (
            AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError,
        ) as error:  # fmt: skip
            what = "" if isinstance(error, DatasetError) else f"{type(error).__name__} "
            on_fault(DatasetError(f"{file} is no scenario that can be read: {what}{error}"))
        else:
            yield log


def is_scenario_file(path: Path) -> bool:
    """Whether a file is called as ScenarioNet calls a scenario."""
    return path.suffix == ".pkl" and (path.stem.startswith("sd_") or path.stem.isdecimal())


@os_errors_are_faults()
def _files(path: Path, on_fault: OnFault) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (path / SUMMARY).exists():
        files = [file for file in path.iterdir() if is_scenario_file(file)]
        if not files:
            raise DatasetError(f"{path} holds neither {SUMMARY} nor scenarios called sd_*.pkl")
        return sorted(files, key=lambda file: (len(file.stem) * file.stem.isdecimal(), file.stem))
    summary = pickles.load(path / SUMMARY)
    folders = pickles.load(path / MAPPING) if (path / MAPPING).exists() else {}
    if not isinstance(summary, dict) or not isinstance(folders, dict):
        raise DatasetError(f"{path / SUMMARY} and {MAPPING} must be dicts by the files' names")
    files = []
    for name in summary:
        folder = folders.get(name, "")
        if isinstance(name, str) and isinstance(folder, str) and "\0" not in name + folder:
            files.append(path / folder / name)
        else:
            on_fault(DatasetError(f"{path / SUMMARY}: {name!r} in {folder!r} is no file's name"))
    return files


def _log(scenario: Any) -> DrivingLog:
    metadata = dict(scenario["metadata"])
    own = dict(metadata.pop(OWN, {}))
    name = str(scenario["id"])
    source = str(metadata.pop("dataset", "scenarionet"))
    frame = f"map of {metadata['map']}" if "map" in metadata else f"world of {source}"
    times = _numbers(metadata.pop("ts"), (-1,))
    start = own.get("start_ns", 0)
    if not (np.abs(times) < 2**32).all() or type(start) is not int or abs(start) >= 2**62:
        raise DatasetError("its times are no seconds")
    steps = len(times)
    signals = dict(own.get("signals", {}))
    signals |= [_signal(*item, steps) for item in scenario["dynamic_map_states"].items()]
    ego = metadata.pop("sdc_id", None)
    metadata["version"] = scenario.get("version", VERSION)
    defaults = defaults_of(name)
    metadata = {k: v for k, v in metadata.items() if not is_default(k, v, defaults)}
    tracks = {str(key): _track(track, steps) for key, track in scenario["tracks"].items()}
    if source == "nuscenes" and str(ego) in tracks:
        tracks[str(ego)] = _lengthwise(tracks[str(ego)])
    return DrivingLog(
        name=name,
        source=source,
        frame=str(own.get("frame", frame)),
        stamps=np.round(times * 1e9).astype(np.int64) + start,
        ego=None if ego is None else str(ego),
        tracks=tracks,
        map=tuple(_feature(str(key), f) for key, f in scenario["map_features"].items()),
        signals=signals,
        metadata=metadata | own.get("metadata", {}),
    )


def defaults_of(name: str) -> dict[str, Any]:
    """What the metadata of a scenario must say, and a log need not."""
    return {
        "version": VERSION, "coordinate": "metadrive", "metadrive_processed": False, "id": name,
        "scenario_id": name,
    }  # fmt: skip


def is_default(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    return key in defaults and type(value) is type(defaults[key]) and value == defaults[key]


def _track(track: Mapping[str, Any], steps: int) -> Track:
    state, properties = dict(track["state"]), dict(track["metadata"])
    valid = _numbers(state.pop("valid"), (steps,)) != 0
    position = _numbers(state.pop("position"), (steps, -1))
    heading = _numbers(state.pop("heading"), (steps,))
    velocity = _numbers(state.pop("velocity"), (steps, 2))
    known = valid & (_numbers(state.pop("velocity_known", valid), (steps,)) != 0)
    size = np.array(
        [_median(_numbers(state.pop(k, [np.nan] * steps), (steps,))[valid]) for k in SIZE]
    )
    size[[key in properties.get("assumed", ()) for key in SIZE]] = np.nan
    if track["type"] not in (*TRACKS, "OTHER"):
        properties["metadrive_type"] = track["type"]
    if state:
        properties["state"] = state
    return Track(
        kind=TRACKS.get(track["type"], "other"),
        position=np.where(valid[:, None], _in_space(position), np.nan),
        heading=np.where(valid, heading, np.nan),
        velocity=np.where(known[:, None], velocity, np.nan),
        size=size,
        valid=valid,
        category=str(properties.get("type", "")),
        properties={k: v for k, v in properties.items() if k not in TRACK_METADATA},
    )


def _lengthwise(ego: Track) -> Track:
    """ScenarioNet's converter of nuScenes writes the length of the ego as its width."""
    length, width, height = ego.size
    return replace(ego, size=np.array([width, length, height])) if length < width else ego


def _median(sizes: NDArray[np.float64]) -> float:
    known = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.median(known)) if len(known) else np.nan


def _feature(key: str, feature: Mapping[str, Any]) -> MapFeature:
    word = str(feature["type"])
    own = word.removeprefix(OWN_TYPE).lower()
    outline, area = None, False
    if "polyline" in feature:
        points = _in_space(_numbers(feature["polyline"], (len(feature["polyline"]), -1)))
        if "polygon" in feature:
            outline = _polygon(feature)
    elif "polygon" in feature:
        points, area = _polygon(feature), True
    else:
        points = _in_space(_numbers(feature["position"], (1, -1)))
    return MapFeature(
        kind=FEATURES.get(word, own if word.startswith(OWN_TYPE) else "other"),
        points=points,
        area=area,
        properties={k: v for k, v in feature.items() if k not in FEATURE_KEYS},
        id="" if key.startswith(UNNAMED) else key,
        category=str(feature.get("category", word)),
        outline=outline,
    )


def _polygon(feature: Mapping[str, Any]) -> NDArray[np.float64]:
    outline = _in_space(_numbers(feature["polygon"], (len(feature["polygon"]), -1)))
    if "polygon_z" in feature:
        outline[:, 2] = _numbers(feature["polygon_z"], (len(outline),))
    return outline


def _signal(key: str, light: Mapping[str, Any], steps: int) -> tuple[str, Signal]:
    state, metadata = light["state"], dict(light["metadata"])
    states = list(state["object_state"])
    if len(states) != steps or not set(states) <= set(LIGHTS):
        raise DatasetError(
            f"light {key} shows {sorted(map(str, set(states)))} in {len(states)} steps"
        )
    position = light.get("stop_point")
    if "stop_point" in state:  # as MetaDrive had it at first: stamp by stamp, lane 0 where unseen
        ruled = np.flatnonzero(_numbers(state["lane"], (steps,)))
        position = _numbers(state["stop_point"], (steps, -1))[ruled[0]] if len(ruled) else None
    if position is not None and "stop_point" not in metadata.get("assumed", ()):
        position = _in_space(_numbers(position, (1, -1)))[0]
    else:
        position = None
    return str(metadata.get("signal_id", key)), Signal(
        states=tuple(LIGHTS[state] for state in states),
        lane=str(light.get("lane", key) or ""),
        position=position,
        properties={k: v for k, v in metadata.items() if k not in SIGNAL_METADATA},
    )


def _numbers(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{value!r:.50} should be {shape} numbers")
    return array.astype(np.float64).reshape(shape)


def _in_space(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) of (N, 2) or (N, 3)."""
    if len(points) and points.shape[1] not in (2, 3):
        raise DatasetError(f"points have {points.shape[1]} coordinates, expected 2 or 3")
    return np.pad(points, ((0, 0), (0, 3 - points.shape[1])))
