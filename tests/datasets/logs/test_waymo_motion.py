"""Waymo motion: both forms of a scenario, against their messages field by field."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import tfrecord
from fastloop.datasets.driving_log import DrivingLog
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import waymo_motion
from fastloop.datasets.waymo import protos

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

STEPS, AGENTS = 5, 3  # of which the example has 1 + 1 + 3, and one agent is not there
PHASES = {"past": slice(0, 1), "current": slice(1, 2), "future": slice(2, 5)}


def make_scenario() -> Any:
    scenario = protos.messages("waymo.open_dataset.Scenario")(
        scenario_id="abc", sdc_track_index=1, current_time_index=1, objects_of_interest=[9, 4]
    )
    scenario.timestamps_seconds.extend(np.arange(STEPS) * 0.1)
    for name, kind in ((9, 2), (4, 1)):
        track = scenario.tracks.add(id=name, object_type=kind)
        for step in range(STEPS):
            if name == 9 and step == 2:
                track.states.add(valid=False, center_x=-1)
                continue
            track.states.add(
                valid=True, center_x=100 + step, center_y=name, center_z=0.5, heading=0.25,
                velocity_x=10, velocity_y=step, length=4, width=2, height=1.5,
            )  # fmt: skip
    scenario.tracks_to_predict.add(track_index=0, difficulty=2)
    lane = scenario.map_features.add(id=1).lane
    lane.speed_limit_mph, lane.type, lane.interpolating = 25, 2, True
    lane.entry_lanes.append(2)
    lane.exit_lanes.append(3)
    neighbor = lane.left_neighbors.add(feature_id=5, self_end_index=1)
    neighbor.boundaries.add(boundary_feature_id=11, boundary_type=7)
    lane.right_boundaries.add(boundary_feature_id=12, lane_end_index=1)
    scenario.map_features.add(id=11).road_line.type = 7
    scenario.map_features.add(id=12).road_edge.type = 2
    for index in (0, 1, 2):
        for line in (lane, scenario.map_features[1].road_line, scenario.map_features[2].road_edge):
            line.polyline.add(x=index, y=1, z=2)
    sign = scenario.map_features.add(id=13).stop_sign
    sign.lane.append(1)
    sign.position.x = 7
    for index, kind in enumerate(("crosswalk", "speed_bump", "driveway")):
        area = getattr(scenario.map_features.add(id=14 + index), kind)
        for x, y in ((0, 0), (1, 0), (1, 1)):
            area.polygon.add(x=x, y=y)
    scenario.map_features.add(id=99)  # says nothing
    for step in range(STEPS):
        lights = scenario.dynamic_map_states.add().lane_states
        if step != 1:
            light = lights.add(lane=1, state=4 if step == 0 else 6)
            light.stop_point.x = 3
    return scenario


def make_example(scenario: Any) -> Any:
    """The same scenario as a tf.Example, laid out as Waymo's converter does."""
    example = protos.messages("tensorflow.Example")()

    def put(name: str, values: Any, kind: str = "float") -> None:
        dtype = np.int64 if kind == "int64" else np.float64
        numbers = np.ravel(np.array(values, dtype=dtype)).tolist()
        getattr(example.features.feature[name], f"{kind}_list").value.extend(numbers)

    example.features.feature["scenario/id"].bytes_list.value.append(b"abc")
    tracks = [*scenario.tracks, None]

    def agent(values: Any) -> list[Any]:
        return [-1 if track is None else values(track) for track in tracks]

    put("state/id", agent(lambda t: t.id))
    put("state/type", agent(lambda t: t.object_type))
    put("state/is_sdc", agent(lambda t: t.id == 4), "int64")
    put("state/objects_of_interest", agent(lambda t: t.id in (9, 4)), "int64")
    put("state/tracks_to_predict", agent(lambda t: t.id == 9), "int64")
    put("state/difficulty_level", agent(lambda t: 2 * (t.id == 9)), "int64")
    fields = {
        "x": "center_x", "y": "center_y", "z": "center_z", "bbox_yaw": "heading",
        "velocity_x": "velocity_x", "velocity_y": "velocity_y", "length": "length",
        "width": "width", "height": "height",
    }  # fmt: skip
    for phase, steps in PHASES.items():
        width = steps.stop - steps.start

        def states(value: Any, steps: slice = steps, width: int = width) -> Any:
            return [
                [-1] * width
                if t is None
                else [value(s) if s.valid else -1 for s in t.states[steps]]
                for t in tracks
            ]

        put(f"state/{phase}/valid", np.array(states(lambda s: 1)) == 1, "int64")
        times = np.array([np.arange(steps.start, steps.stop) * 100_000] * AGENTS)
        times[np.array(states(lambda s: 1)) != 1] = -1
        put(f"state/{phase}/timestamp_micros", times, "int64")
        for name, field in fields.items():
            put(f"state/{phase}/{name}", states(lambda s, field=field: getattr(s, field)))
        lights = [list(moment.lane_states) for moment in scenario.dynamic_map_states[steps]]
        prefix = f"traffic_light_state/{phase}/"
        put(prefix + "timestamp_micros", np.arange(steps.start, steps.stop) * 100_000, "int64")
        put(prefix + "id", [[-1, x[0].lane if x else -1] for x in lights], "int64")
        put(prefix + "state", [[-1, x[0].state if x else -1] for x in lights], "int64")
        put(prefix + "valid", [[0, len(x)] for x in lights], "int64")
        for axis, value in (("x", 3), ("y", 0), ("z", 0)):
            put(prefix + axis, [[-1, value]] * width)
    samples = [
        (1, 2, (0, 1, 2)), (1, 2, (1, 1, 2)), (1, 2, (2, 1, 2)), (11, 12, (0, 1, 2)),
        (11, 12, (2, 1, 2)), (12, 16, (0, 1, 2)), (13, 17, (7, 0, 0)), (14, 18, (0, 0, 0)),
        (14, 18, (1, 0, 0)), (14, 18, (1, 1, 0)), (-1, -1, (-1, -1, -1)),
    ]  # fmt: skip
    put("roadgraph_samples/id", [row[0] for row in samples], "int64")
    put("roadgraph_samples/type", [row[1] for row in samples], "int64")
    put("roadgraph_samples/valid", [row[0] >= 0 for row in samples], "int64")
    put("roadgraph_samples/xyz", [row[2] for row in samples])
    return example


def write(folder: Path, *messages: Any) -> Path:
    file = folder / "motion.tfrecord-00000-of-00001"
    tfrecord.write(file, [message.SerializeToString() for message in messages])
    return file


def read_one(folder: Path, message: Any) -> DrivingLog:
    (log,) = waymo_motion.read(write(folder, message))
    return log


def check_tracks(log: DrivingLog) -> None:
    assert (log.name, log.ego, log.source) == ("abc", "4", "waymo_motion")
    assert log.stamps.tolist() == [0, 100_000_000, 200_000_000, 300_000_000, 400_000_000]
    assert {key: track.kind for key, track in log.tracks.items()} == {
        "9": "pedestrian", "4": "vehicle",
    }  # fmt: skip
    walker = log.tracks["9"]
    assert walker.valid.tolist() == [True, True, False, True, True]
    assert np.isnan(walker.position[2]).all()
    np.testing.assert_array_equal(walker.position[3], [103, 9, 0.5])
    np.testing.assert_array_equal(walker.velocity[4], [10, 4])
    assert walker.heading[0] == 0.25
    np.testing.assert_array_equal(walker.size, [4, 2, 1.5])
    assert log.metadata["current_time_index"] == 1
    assert sorted(log.metadata["objects_of_interest"]) == ["4", "9"]
    assert log.metadata["tracks_to_predict"] == {"9": 2}
    (light,) = log.signals.values()
    assert light.states == ("stop", None, "go", "go", "go")
    assert light.lane == "1"
    np.testing.assert_array_equal(light.position, [3, 0, 0])


def test_a_scenario_is_read(tmp_path: Path) -> None:
    log = read_one(tmp_path, make_scenario())
    check_tracks(log)
    assert [(feature.id, feature.kind) for feature in log.map] == [
        ("1", "lane"), ("11", "lane_line"), ("12", "road_edge"), ("13", "stop_sign"),
        ("14", "crosswalk"), ("15", "speed_bump"), ("16", "driveway"),
    ]  # fmt: skip
    assert [feature.category for feature in log.map[:3]] == [
        "LANE_SURFACE_STREET", "ROAD_LINE_SOLID_DOUBLE_YELLOW", "ROAD_EDGE_MEDIAN",
    ]  # fmt: skip
    assert [feature.area for feature in log.map] == [False] * 4 + [True] * 3
    about = log.map[0].properties
    assert about["speed_limit_kmh"] == pytest.approx(40.2336)
    assert (about["entry_lanes"], about["exit_lanes"]) == (["2"], ["3"])
    assert (about["left_neighbor"], about["right_neighbor"]) == (["5"], [])
    assert about["left_neighbor_spans"][0]["boundaries"][0]["boundary_feature_id"] == "11"
    assert about["right_boundaries"][0]["lane_end_index"] == 1
    assert log.map[3].properties == {"lanes": ["1"]}


def test_an_example_is_read_as_its_scenario(tmp_path: Path) -> None:
    log = read_one(tmp_path, make_example(make_scenario()))
    check_tracks(log)
    assert [(feature.id, feature.kind, feature.category) for feature in log.map] == [
        ("1", "lane", "LANE_SURFACE_STREET"), ("11", "lane_line", "ROAD_LINE_SOLID_DOUBLE_YELLOW"),
        ("12", "road_edge", "ROAD_EDGE_MEDIAN"), ("13", "stop_sign", "STOP_SIGN"),
        ("14", "crosswalk", "CROSSWALK"),
    ]  # fmt: skip
    assert [len(feature.points) for feature in log.map] == [3, 2, 1, 1, 3]


def test_a_stamp_without_sightings_is_a_step_behind_the_one_before(tmp_path: Path) -> None:
    example = make_example(make_scenario())
    times = example.features.feature["state/future/valid"].int64_list.value
    times[:] = [0] * len(times)
    assert read_one(tmp_path, example).stamps.tolist() == [n * 100_000_000 for n in range(5)]


def test_an_example_of_the_test_split_has_no_future(tmp_path: Path) -> None:
    example = make_example(make_scenario())
    for name in list(example.features.feature):
        if "future" in name:
            del example.features.feature[name]
    log = read_one(tmp_path, example)
    assert len(log) == 2
    assert log.signals["1"].states == ("stop", None)


def edited(**fields: Any) -> Any:
    scenario = make_scenario()
    for name, value in fields.items():
        setattr(scenario, name, value)
    return scenario


def test_what_a_scenario_lacks_is_said(tmp_path: Path) -> None:
    assert read_one(tmp_path, edited(sdc_track_index=7)).ego is None
    scenario = make_scenario()
    del scenario.tracks[0].states[3:]
    with pytest.raises(DatasetError, match="byte 0: track 9 has 3 states for 5 times"):
        read_one(tmp_path, scenario)
    scenario = make_scenario()
    scenario.tracks[0].id = 4
    with pytest.raises(DatasetError, match="same id"):
        read_one(tmp_path, scenario)
    with pytest.raises(DatasetError, match="no tracks"):
        read_one(tmp_path, protos.messages("waymo.open_dataset.Scenario")())
    scenario = make_scenario()
    scenario.timestamps_seconds[2] = 0
    with pytest.raises(DatasetError, match="rising"):
        read_one(tmp_path, scenario)
    scenario = make_scenario()
    scenario.tracks[1].states[0].center_x = float("nan")
    with pytest.raises(DatasetError, match="not finite"):
        read_one(tmp_path, scenario)


def test_a_damaged_record_is_named_and_passed_over(tmp_path: Path) -> None:
    file = write(tmp_path, make_scenario(), make_scenario(), make_example(make_scenario()))
    data = bytearray(file.read_bytes())
    start = tfrecord.OVERHEAD + len(make_scenario().SerializeToString())
    data[start + 20] ^= 1
    file.write_bytes(data)
    faults: list[DatasetError] = []
    logs = list(waymo_motion.read(tmp_path, on_fault=faults.append))
    assert [len(log.map) for log in logs] == [7, 5]
    assert str(start) in str(*faults)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="tfrecord"):
        list(waymo_motion.read(tmp_path))
    with pytest.raises(DatasetError):
        list(waymo_motion.read(tmp_path / "gone.tfrecord"))


MESSAGES = [make_scenario().SerializeToString(), make_example(make_scenario()).SerializeToString()]


@settings(max_examples=60)
@given(st.sampled_from(MESSAGES), st.data())
def test_damaged_messages_are_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, message: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    file = tmp_path_factory.getbasetemp() / "damaged.tfrecord"
    tfrecord.write(file, [bytes(damaged)])
    with contextlib.suppress(DatasetError):
        list(waymo_motion.read(file))


columns = st.sampled_from(sorted(make_example(make_scenario()).features.feature))
values = st.lists(st.sampled_from([0, 1, -1, 7, 2**62, -(2**63)]), max_size=20)
floats = st.lists(st.sampled_from([0.0, 1.5, float("nan"), float("inf"), 3e38]), max_size=20)


@settings(max_examples=60)
@given(columns, st.none() | values | floats)
def test_an_example_of_nonsense_is_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, name: str, column: list[Any] | None
) -> None:
    example = make_example(make_scenario())
    del example.features.feature[name]
    if column is not None:
        feature = example.features.feature[name]
        kind = "float_list" if any(isinstance(v, float) for v in column) else "int64_list"
        getattr(feature, kind).value.extend(column)
    with contextlib.suppress(DatasetError):
        read_one(tmp_path_factory.getbasetemp(), example)


@settings(max_examples=25)
@given(st.binary(max_size=60))
def test_arbitrary_messages_are_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "arbitrary.tfrecord"
    tfrecord.write(file, [payload])
    with contextlib.suppress(DatasetError):
        list(waymo_motion.read(file))


@pytest.mark.parametrize("name", ["motion_data_one_scenario", "womd_scenario_input"])
def test_recorded_scenarios_are_read_field_by_field(realdata: Path, name: str) -> None:
    file = realdata / "waymo_motion" / f"{name}.tfrecord"
    (log,) = waymo_motion.read(file)
    ((_, payload),) = tfrecord.records(file)
    raw = protos.parse("waymo.open_dataset.Scenario", payload, where=name)
    assert log.name == raw.scenario_id
    assert log.ego == str(raw.tracks[raw.sdc_track_index].id)
    np.testing.assert_allclose(log.stamps * 1e-9, raw.timestamps_seconds, atol=1e-9)
    assert len(log.tracks) == len(raw.tracks)
    for track in raw.tracks:
        mine = log.tracks[str(track.id)]
        assert f"TYPE_{mine.category}" == type(track).ObjectType.Name(track.object_type)
        for step, state in enumerate(track.states):
            assert mine.valid[step] == state.valid
            if state.valid:
                assert tuple(mine.position[step]) == (
                    state.center_x, state.center_y, state.center_z,
                )  # fmt: skip
                assert mine.heading[step] == state.heading
                assert tuple(mine.velocity[step]) == (state.velocity_x, state.velocity_y)
    assert len(log.map) == len(raw.map_features)
    for mine, feature in zip(log.map, raw.map_features, strict=True):
        data = getattr(feature, feature.WhichOneof("feature_data"))
        points = (
            getattr(data, "polyline", None) or getattr(data, "polygon", None) or [data.position]
        )
        assert [tuple(point) for point in mine.points] == [(p.x, p.y, p.z) for p in points]
    shown = {
        (str(light.lane), step): light.state
        for step, moment in enumerate(raw.dynamic_map_states)
        for light in moment.lane_states
    }
    mine_shown = {
        (lane, step): waymo_motion.SIGNAL_STATES.index(state)
        for lane, signal in log.signals.items()
        for step, state in enumerate(signal.states)
        if state is not None
    }
    assert mine_shown == shown


def test_the_recorded_example_is_read_field_by_field(realdata: Path) -> None:
    file = realdata / "waymo_motion" / "motion_data_one_example.tfrecord"
    (log,) = waymo_motion.read(file)
    ((_, payload),) = tfrecord.records(file)
    features = protos.parse("tensorflow.Example", payload, where="").features.feature

    def column(name: str, kind: str = "float_list") -> Any:
        return np.array(getattr(features[name], kind).value)

    ids = column("state/id").astype(int)
    assert len(log) == 91
    assert ids[column("state/is_sdc", "int64_list") == 1].tolist() == [int(log.ego or 0)]
    for phase, steps in (("past", range(10)), ("current", [10]), ("future", range(11, 91))):
        valid = column(f"state/{phase}/valid", "int64_list").reshape(128, -1)
        x = column(f"state/{phase}/x").reshape(128, -1)
        speed = column(f"state/{phase}/velocity_y").reshape(128, -1)
        for agent, name in enumerate(ids):
            if str(name) in log.tracks:
                mine, seen = log.tracks[str(name)], valid[agent] == 1
                np.testing.assert_array_equal(mine.valid[steps], seen)
                np.testing.assert_array_equal(mine.position[steps, 0][seen], x[agent][seen])
                np.testing.assert_array_equal(mine.velocity[steps, 1][seen], speed[agent][seen])
    points = np.concatenate([feature.points for feature in log.map])
    xyz = column("roadgraph_samples/xyz").reshape(-1, 3)
    here = column("roadgraph_samples/valid", "int64_list") == 1
    np.testing.assert_array_equal(points, xyz[here])
    lights = sum(
        (column(f"traffic_light_state/{phase}/valid", "int64_list") == 1).sum()
        for phase in ("past", "current", "future")
    )
    assert sum(s is not None for light in log.signals.values() for s in light.states) == lights
