"""The Waymo Open Motion Dataset: TFRecords of Scenario messages, or of their tf.Example form.

Both hold 9.1 s at 10 Hz (1 s behind, 8 s ahead of ``current_time_index`` 10; ``training_20s`` has
20 s) in a right-handed frame of the world whose origin is arbitrary: m, rad, m/s, centers of boxes
(Ettinger et al., 2021, https://github.com/waymo-research/waymo-open-dataset). A Scenario has all
tracks, the map as lines and areas, and which lanes lead to which; a tf.Example has at most 128
tracks in float32, and of the map up to 20000 points without their relations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import tfrecord
from fastloop.datasets.driving_log import SIGNALS, DrivingLog, MapFeature, Signal, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.waymo import protos

__all__ = ["read"]

SOURCE, FRAME = "waymo_motion", "world of Waymo: origin arbitrary"
KMH_PER_MPH = 1.609344
CATEGORIES = ("UNSET", "VEHICLE", "PEDESTRIAN", "CYCLIST", "OTHER")
KINDS = ("other", "vehicle", "pedestrian", "cyclist", "other")
# The messages number their types from 0; a tf.Example numbers all of them in one row.
LANES = ("LANE_UNKNOWN", "LANE_FREEWAY", "LANE_SURFACE_STREET", "LANE_BIKE_LANE")
LINES = (
    "UNKNOWN_LINE", "ROAD_LINE_BROKEN_SINGLE_WHITE", "ROAD_LINE_SOLID_SINGLE_WHITE",
    "ROAD_LINE_SOLID_DOUBLE_WHITE", "ROAD_LINE_BROKEN_SINGLE_YELLOW",
    "ROAD_LINE_BROKEN_DOUBLE_YELLOW", "ROAD_LINE_SOLID_SINGLE_YELLOW",
    "ROAD_LINE_SOLID_DOUBLE_YELLOW", "ROAD_LINE_PASSING_DOUBLE_YELLOW",
)  # fmt: skip
EDGES = ("UNKNOWN", "ROAD_EDGE_BOUNDARY", "ROAD_EDGE_MEDIAN")
SIGNAL_STATES = (  # of the messages, in the words of a log
    "unknown", "arrow_stop", "arrow_caution", "arrow_go", "stop", "caution", "go", "flashing_stop",
    "flashing_caution",
)  # fmt: skip
AREAS = ("crosswalk", "speed_bump", "driveway")
EXAMPLE_TYPES = {
    **{number: ("lane", word) for number, word in enumerate(LANES)},
    **{5 + number: ("lane_line", word) for number, word in enumerate(LINES)},
    **{14 + number: ("road_edge", word) for number, word in enumerate(EDGES)},
    17: ("stop_sign", "STOP_SIGN"), 18: ("crosswalk", "CROSSWALK"),
    19: ("speed_bump", "SPEED_BUMP"), 20: ("driveway", "DRIVEWAY"),
}  # fmt: skip
STATES = ("x", "y", "z", "bbox_yaw", "velocity_x", "velocity_y", "length", "width", "height")
PHASES = ("past", "current", "future")
STEP_US = 100_000

assert set(SIGNAL_STATES) == set(SIGNALS)


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """The scenarios of a TFRecord file, or of all ``*.tfrecord*`` of a folder, in their order.

    Both forms give the same words: ``metadata`` has ``current_time_index``, ``objects_of_interest``
    (ids of tracks that interact) and ``tracks_to_predict`` (ids with their difficulty, 0 to 2);
    signals go by the lane that they rule. A size is the median over the stamps at which its track
    was seen. In a tf.Example a stamp at which nothing was seen is 0.1 s behind the one before.

    Args:
        path: of the file or the folder.
        on_fault: told of each record that cannot be read, with its file and offset.

    Raises:
        DatasetError: where there is nothing to read, and by `raise_fault`.
        MissingExtraError: without protobuf and google-crc32c.
    """
    path = Path(path)
    with os_errors_are_faults():
        files = sorted(path.glob("*.tfrecord*")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f"{path} holds no file *.tfrecord*")
    for file in files:
        for offset, payload in tfrecord.records(file, on_fault=on_fault):
            where = f"{file}, record at byte {offset}"
            try:
                log = _read(bytes(payload), where)
            except DatasetError as fault:
                on_fault(fault)
            except (KeyError, IndexError, OverflowError, ValueError) as error:
                on_fault(DatasetError(f"{where} is no scenario: {error!r:.200}"))
            else:
                yield log


def _read(payload: bytes, where: str) -> DrivingLog:
    if _is_example(payload):
        return _from_example(protos.parse("tensorflow.Example", payload, where=where), where)
    return _from_scenario(protos.parse("waymo.open_dataset.Scenario", payload, where=where), where)


def _is_example(payload: bytes) -> bool:
    """Whether a message is but one field 1, as an Example, whose only field are its features."""
    if payload[:1] != b"\x0a":
        return False
    size = shift = 0
    for index, byte in enumerate(payload[1:6], start=2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return index + size == len(payload)
    return False


def _from_scenario(scenario: Any, where: str) -> DrivingLog:
    seconds = np.array(scenario.timestamps_seconds)
    steps = len(seconds)
    if not steps or not scenario.tracks or not (np.abs(seconds) < 1e9).all():
        raise DatasetError(f"{where} is no scenario: it has no tracks, or no times in seconds")
    names = [str(track.id) for track in scenario.tracks]
    if len(set(names)) < len(names):
        raise DatasetError(f"{where}: two tracks have the same id")
    tracks = {}
    for name, track in zip(names, scenario.tracks, strict=True):
        if len(track.states) != steps:
            raise DatasetError(
                f"{where}: track {name} has {len(track.states)} states for {steps} times"
            )
        valid = np.array([state.valid for state in track.states])
        states = np.array(
            [
                (
                    s.center_x, s.center_y, s.center_z, s.heading, s.velocity_x, s.velocity_y,
                    s.length, s.width, s.height,
                )
                for s in track.states
            ]
        )  # fmt: skip
        tracks[name] = _track(states, valid, track.object_type)
    lights: dict[str, dict[int, Any]] = {}
    for step, moment in enumerate(scenario.dynamic_map_states[:steps]):
        for state in moment.lane_states:
            lights.setdefault(str(state.lane), {})[step] = state
    return DrivingLog(
        name=protos.text(scenario, "scenario_id", where=where),
        source=SOURCE,
        frame=FRAME,
        stamps=np.round(seconds * 1e9).astype(np.int64),
        ego=names[scenario.sdc_track_index] if 0 <= scenario.sdc_track_index < len(names) else None,
        tracks=tracks,
        map=tuple(_feature(feature) for feature in scenario.map_features if _named(feature)),
        signals={
            lane: _signal(
                lane,
                steps,
                {step: state.state for step, state in states.items()},
                _points([next(iter(states.values())).stop_point])[0],
            )
            for lane, states in lights.items()
        },
        metadata={
            "current_time_index": scenario.current_time_index,
            "objects_of_interest": [str(name) for name in scenario.objects_of_interest],
            "tracks_to_predict": {
                names[wanted.track_index]: wanted.difficulty
                for wanted in scenario.tracks_to_predict
                if 0 <= wanted.track_index < len(names)
            },
        },
    )


def _track(states: NDArray[np.float64], valid: NDArray[np.bool_], kind: int) -> Track:
    """A track of its (T, 9) `STATES`."""
    seen = np.where(valid[:, None], states, np.nan)
    known = states[valid, 6:]
    return Track(
        kind=KINDS[kind],
        position=seen[:, :3].copy(),
        heading=seen[:, 3].copy(),
        velocity=seen[:, 4:6].copy(),
        size=np.median(known, axis=0) if len(known) else np.full(3, np.nan),
        valid=valid,
        category=CATEGORIES[kind],
    )


def _signal(lane: str, steps: int, shown: Mapping[int, int], stop: NDArray[np.float64]) -> Signal:
    return Signal(
        states=tuple(SIGNAL_STATES[shown[t]] if t in shown else None for t in range(steps)),
        lane=lane,
        position=stop,
    )


def _named(feature: Any) -> str | None:
    return feature.WhichOneof("feature_data")


def _feature(feature: Any) -> MapFeature:
    name = _named(feature)
    assert name is not None
    data = getattr(feature, name)
    about: dict[str, Any] = {"id": str(feature.id)}
    if name == "lane":
        about |= {"category": LANES[data.type], "properties": _lane(data)}
        return MapFeature("lane", _points(data.polyline), **about)
    if name == "road_line":
        return MapFeature("lane_line", _points(data.polyline), category=LINES[data.type], **about)
    if name == "road_edge":
        return MapFeature("road_edge", _points(data.polyline), category=EDGES[data.type], **about)
    if name == "stop_sign":
        about["properties"] = {"lanes": [str(lane) for lane in data.lane]}
        return MapFeature(name, _points([data.position]), category="STOP_SIGN", **about)
    assert name in AREAS
    return MapFeature(name, _points(data.polygon), area=True, category=name.upper(), **about)


def _lane(lane: Any) -> dict[str, Any]:
    limit = lane.speed_limit_mph
    return {
        **({"speed_limit_kmh": limit * KMH_PER_MPH} if limit > 0 else {}),
        "interpolating": lane.interpolating,
        "entry_lanes": [str(other) for other in lane.entry_lanes],
        "exit_lanes": [str(other) for other in lane.exit_lanes],
        "left_neighbor": [str(other.feature_id) for other in lane.left_neighbors],
        "right_neighbor": [str(other.feature_id) for other in lane.right_neighbors],
        # Where along the lane: indices of its points, and of the neighbor's.
        "left_neighbor_spans": [_span(other) for other in lane.left_neighbors],
        "right_neighbor_spans": [_span(other) for other in lane.right_neighbors],
        "left_boundaries": [_boundary(boundary) for boundary in lane.left_boundaries],
        "right_boundaries": [_boundary(boundary) for boundary in lane.right_boundaries],
    }


def _span(neighbor: Any) -> dict[str, Any]:
    return {
        "feature_id": str(neighbor.feature_id),
        "self_start_index": neighbor.self_start_index,
        "self_end_index": neighbor.self_end_index,
        "neighbor_start_index": neighbor.neighbor_start_index,
        "neighbor_end_index": neighbor.neighbor_end_index,
        "boundaries": [_boundary(boundary) for boundary in neighbor.boundaries],
    }


def _boundary(boundary: Any) -> dict[str, Any]:
    return {
        "lane_start_index": boundary.lane_start_index,
        "lane_end_index": boundary.lane_end_index,
        "boundary_feature_id": str(boundary.boundary_feature_id),
        "boundary_type": LINES[boundary.boundary_type],
    }


def _points(points: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([(p.x, p.y, p.z) for p in points], dtype=np.float64).reshape(-1, 3)


def _from_example(example: Any, where: str) -> DrivingLog:
    features = example.features.feature

    def column(name: str) -> NDArray[Any]:
        kind = features[name].WhichOneof("kind") if name in features else None
        if kind not in ("float_list", "int64_list"):
            raise DatasetError(f"{where} has no numbers called {name}")
        return np.array(getattr(features[name], kind).value)

    ids = column("state/id")
    agents = len(ids)
    if not agents or not (np.abs(ids) < 2**31).all():
        raise DatasetError(f"{where} has no ids of its agents")
    phases = [phase for phase in PHASES if f"state/{phase}/valid" in features]

    def over_time(name: str) -> NDArray[Any]:
        """(agents, T), the phases after each other."""
        return np.concatenate([column(f"state/{p}/{name}").reshape(agents, -1) for p in phases], 1)

    valid = over_time("valid") == 1
    states = np.stack([over_time(name) for name in STATES], axis=2).astype(np.float64)
    stamps = _stamps(np.where(valid, over_time("timestamp_micros"), -1), where)
    kinds, chosen = column("state/type"), column("state/tracks_to_predict")
    interest, is_sdc = column("state/objects_of_interest"), column("state/is_sdc")
    difficulty = column("state/difficulty_level")
    tracks, ego, interesting, wanted = {}, None, [], {}
    for agent in np.flatnonzero((ids >= 0) & valid.any(axis=1)):
        name = str(int(ids[agent]))
        if name in tracks or kinds[agent] not in range(len(KINDS)):
            raise DatasetError(f"{where}: agent {name} is there twice, or of type {kinds[agent]}")
        tracks[name] = _track(states[agent], valid[agent], int(kinds[agent]))
        if is_sdc[agent] == 1:
            ego = name
        if interest[agent] == 1:
            interesting.append(name)
        if chosen[agent] == 1:
            wanted[name] = int(difficulty[agent])
    name = features["scenario/id"].bytes_list.value if "scenario/id" in features else []
    return DrivingLog(
        name=name[0].decode("ascii") if name else "",
        source=SOURCE,
        frame=FRAME,
        stamps=stamps,
        ego=ego,
        tracks=tracks,
        map=_roadgraph(column),
        signals=_example_signals(column, phases, len(stamps)),
        metadata={
            "current_time_index": column("state/past/valid").size // agents,
            "objects_of_interest": interesting,
            "tracks_to_predict": wanted,
        },
    )


def _stamps(micros: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """(T,) ns of (agents, T) us, of which those below 0 are not known."""
    latest = micros.max(axis=0)
    known = np.flatnonzero(latest >= 0)
    if not len(known) or (latest >= 2**50).any():
        raise DatasetError(f"{where} has no timestamps in microseconds")
    steps = np.arange(len(latest))
    before = known[np.maximum(np.searchsorted(known, steps, side="right") - 1, 0)]
    return (latest[before] + (steps - before) * STEP_US) * 1000


def _roadgraph(column: Callable[[str], NDArray[Any]]) -> tuple[MapFeature, ...]:
    """Features of the points in a row that have the same id."""
    ids, types = column("roadgraph_samples/id"), column("roadgraph_samples/type")
    points = column("roadgraph_samples/xyz").astype(np.float64).reshape(len(ids), 3)
    here = column("roadgraph_samples/valid") == 1
    ids, types, points = ids[here], types[here], points[here]
    features = []
    for rows in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids)) + 1):
        if len(rows):
            kind, category = EXAMPLE_TYPES.get(int(types[rows[0]]), ("other", "UNKNOWN"))
            features.append(
                MapFeature(
                    kind, points[rows], kind in AREAS, id=str(int(ids[rows[0]])), category=category
                )
            )
    return tuple(features)


def _example_signals(
    column: Callable[[str], NDArray[Any]], phases: Sequence[str], steps: int
) -> dict[str, Signal]:
    lights: dict[str, dict[int, int]] = {}
    stops: dict[str, NDArray[np.float64]] = {}
    first = 0
    for phase in phases:
        prefix = f"traffic_light_state/{phase}/"
        times = len(column(prefix + "timestamp_micros"))
        lanes, states, valid, *stop = (
            column(prefix + name).reshape(times, -1)
            for name in ("id", "state", "valid", "x", "y", "z")
        )
        for time, slot in np.argwhere(valid == 1):
            lane = str(int(lanes[time, slot]))
            lights.setdefault(lane, {})[first + int(time)] = int(states[time, slot])
            stops.setdefault(lane, np.array([axis[time, slot] for axis in stop], dtype=np.float64))
        first += times
    return {lane: _signal(lane, steps, shown, stops[lane]) for lane, shown in lights.items()}
