"""ScenarioNet: what a scenario says is read, what a log says is written for MetaDrive."""

from __future__ import annotations

import contextlib
import copy
import pickle
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastloop.datasets import pickles
from fastloop.datasets.driving_log import (
    FEATURES,
    KINDS,
    SIGNALS,
    DrivingLog,
    MapFeature,
    Signal,
    Track,
)
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import scenarionet
from fastloop.datasets.logs.scenarionet_writer import to_scenario

STEPS = 4
SIZES = {"length": 4.5, "width": 1.9, "height": 1.6}


def make_scenario(columns: bool = False) -> dict[str, Any]:
    """As ScenarioNet writes it; sizes are (T, 1) where `columns`, as those of nuScenes."""
    valid = np.array([1.0, 1, 0, 1])
    state = {
        "position": np.arange(12.0).reshape(4, 3) * valid[:, None],
        "heading": np.array([0.1, 0.2, 0, 0.4]),
        "velocity": np.ones((4, 2)) * valid[:, None],
        "valid": valid,
        **{k: (v * valid)[:, None] if columns else v * valid for k, v in SIZES.items()},
    }

    def track(key: str, kind: str, category: str) -> dict[str, Any]:
        metadata = {"type": category, "object_id": key, "track_length": 4, "original_id": key}
        return {"type": kind, "state": copy.deepcopy(state), "metadata": metadata}

    line = [[0.0, 0.0], [1.0, 0.5]]
    area = [[0, 0], [1, 0], [1, 1]]
    return {
        "id": "scene-1",
        "version": "nuscenesv1.0-mini",
        "length": 4,
        "metadata": {
            "dataset": "nuscenes", "map": "boston", "coordinate": "right-handed", "sdc_id": "ego",
            "metadrive_processed": False, "id": "scene-1", "scenario_id": "scene-1",
            "ts": np.array([0, 0.1, 0.2, 0.3], dtype=np.float32), "sample_rate": 0.1,
        },
        "tracks": {
            "ego": track("ego", "VEHICLE", "VEHICLE"),
            "a": track("a", "TRAFFIC_CONE", "movable_object.trafficcone"),
            "b": track("b", "TRAFFIC_BARRIER", ""),
            "c": track("c", "TRAFFIC_OBJECT", "debris"),
        },
        "map_features": {
            "1": {
                "type": "LANE_FREEWAY", "polyline": [(0.0, 0.0, 1.5), (9.0, 0.0, 1.5)],
                "polygon": area, "speed_limit_kmh": 100, "exit_lanes": ["2"],
            },
            "2": {"type": "ROAD_LINE_SOLID_SINGLE_YELLOW", "polyline": np.array(line)},
            "3": {"type": "ROAD_EDGE_BOUNDARY", "polyline": line},
            "4": {"type": "ROAD_EDGE_SIDEWALK", "polygon": area},
            "5": {"type": "CROSSWALK", "polygon": area},
            "6": {"type": "STOP_SIGN", "position": np.array([1.0, 2, 3]), "lane": ["1"]},
            "7": {"type": "SOMETHING_NEW", "polyline": line},
        },
        "dynamic_map_states": {
            "1": {
                "type": "TRAFFIC_LIGHT", "lane": "1", "stop_point": np.array([9.0, 0, 1.5]),
                "state": {"object_state": ["LANE_STATE_STOP", None, "LANE_STATE_ARROW_GO",
                                           "TRAFFIC_LIGHT_GREEN"]},
                "metadata": {"type": "TRAFFIC_LIGHT", "object_id": "1", "track_length": 4},
            }
        },
    }  # fmt: skip


def read_back(scenario: Any, folder: Path) -> DrivingLog:
    file = folder / "sd_test.pkl"
    file.write_bytes(pickle.dumps(scenario))
    (log,) = scenarionet.read(file)
    return log


@pytest.mark.parametrize("columns", [False, True])
def test_a_scenario_is_read(columns: bool, tmp_path: Path) -> None:
    log = read_back(make_scenario(columns), tmp_path)
    assert (log.name, log.source, log.frame, log.ego) == (
        "scene-1", "nuscenes", "map of boston", "ego",
    )  # fmt: skip
    np.testing.assert_allclose(log.stamps, np.arange(4) * 1e8, atol=20)
    assert log.metadata == {
        "map": "boston", "coordinate": "right-handed", "sample_rate": 0.1,
        "version": "nuscenesv1.0-mini",
    }  # fmt: skip
    ego = log.tracks["ego"]
    assert ego.valid.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(ego.position[[0, 1, 3]], np.arange(12.0).reshape(4, 3)[[0, 1, 3]])
    assert np.isnan(ego.position[2]).all()
    assert np.isnan(ego.heading[2])
    np.testing.assert_array_equal(ego.size, [4.5, 1.9, 1.6])
    assert [track.kind for track in log.tracks.values()] == ["vehicle", "cone", "barrier", "other"]
    assert log.tracks["a"].category == "movable_object.trafficcone"
    assert [feature.kind for feature in log.map] == [
        "lane", "lane_line", "road_edge", "walkway", "crosswalk", "stop_sign", "other",
    ]  # fmt: skip
    assert [feature.area for feature in log.map] == [False] * 3 + [True] * 2 + [False] * 2
    lane = log.map[0]
    assert lane.properties == {"speed_limit_kmh": 100, "exit_lanes": ["2"]}
    assert lane.category == "LANE_FREEWAY"
    np.testing.assert_array_equal(lane.points, [[0, 0, 1.5], [9, 0, 1.5]])
    np.testing.assert_array_equal(lane.outline, [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    assert log.signals["1"] == Signal(
        ("stop", None, "arrow_go", "go"), lane="1", position=np.array([9.0, 0, 1.5])
    )


def test_types_are_written_as_they_were(tmp_path: Path) -> None:
    scenario = make_scenario()
    written = to_scenario(read_back(scenario, tmp_path))
    for part in ("tracks", "map_features", "dynamic_map_states"):
        types = {key: value["type"] for key, value in scenario[part].items()}
        assert {key: value["type"] for key, value in written[part].items()} == types


def test_lights_of_the_first_form_are_read(tmp_path: Path) -> None:
    scenario = make_scenario()
    light = scenario["dynamic_map_states"]["1"]
    del light["stop_point"], light["lane"]
    light["state"]["stop_point"] = np.array([[0, 0], [9, 1], [9, 1], [9, 1]])
    light["state"]["lane"] = np.array([0, 1, 1, 1])
    signal = read_back(scenario, tmp_path).signals["1"]
    np.testing.assert_array_equal(signal.position, [9, 1, 0])
    assert signal.lane == "1"


def test_sizes_are_the_middle_of_those_seen(tmp_path: Path) -> None:
    scenario = make_scenario()
    scenario["tracks"]["ego"]["state"]["length"] = np.array([4.0, 5, 99, 4.4])
    del scenario["tracks"]["ego"]["state"]["height"]
    size = read_back(scenario, tmp_path).tracks["ego"].size
    np.testing.assert_array_equal(size, [4.4, 1.9, np.nan])


words = st.text(string.ascii_letters + "_|/ ", min_size=1, max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | words,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(words, parts, max_size=3),
    max_leaves=5,
)
# The format says itself of what type a thing is.
some = st.dictionaries(words.filter(lambda word: word != "type"), plain, max_size=2)
meters = st.floats(-1e4, 1e4)
lines = arrays.arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3)), elements=meters)


@st.composite
def tracks(draw: st.DrawFn) -> Track:
    valid = draw(arrays.arrays(bool, STEPS))
    speed_known = draw(arrays.arrays(bool, STEPS)) & valid

    def seen(shape: tuple[int, ...], when: Any = valid) -> Any:
        values = draw(arrays.arrays(np.float64, (STEPS, *shape), elements=meters))
        return np.where(when.reshape(-1, *[1] * len(shape)), values, np.nan)

    size = st.just(np.nan) | st.floats(0.1, 20)
    return Track(
        kind=draw(st.sampled_from(KINDS)),
        position=seen((3,)),
        heading=seen(()),
        velocity=seen((2,), speed_known),
        # A thing that was never seen has no size.
        size=np.array([draw(size) if valid.any() else np.nan for _ in range(3)]),
        valid=valid,
        category=draw(words),
        properties=draw(some),
    )


@st.composite
def features(draw: st.DrawFn, name: str) -> MapFeature:
    kind, area = draw(st.sampled_from(FEATURES)), draw(st.booleans())
    return MapFeature(
        kind,
        draw(lines),
        area,
        draw(some),
        id=name,
        category=draw(words | st.sampled_from(list(scenarionet.FEATURES))),
        outline=draw(st.none() | lines) if kind == "lane" and not area else None,
    )


@st.composite
def logs(draw: st.DrawFn) -> DrivingLog:
    first, steps = draw(st.integers(-(2**60), 2**60)), draw(st.integers(1, 10**10))
    states = st.tuples(*[st.none() | st.sampled_from(SIGNALS)] * STEPS)
    signal = st.builds(
        Signal,
        states,
        st.sampled_from(["", "lane 1", "lane 2"]),
        st.none() | arrays.arrays(np.float64, 3, elements=meters),
        some,
    )
    keys = draw(st.lists(words, min_size=1, max_size=3, unique=True))
    return DrivingLog(
        name=draw(words),
        source=draw(words),
        frame=draw(words),
        stamps=first + np.arange(STEPS) * steps,
        ego=keys[0],
        tracks={key: draw(tracks()) for key in keys},
        map=tuple(draw(features(name)) for name in ["lane 1", "lane 2", "", ""]),
        signals=draw(st.dictionaries(words, signal | plain, max_size=3)),
        metadata=draw(
            st.dictionaries(words | st.sampled_from(["ts", "id", "frame", "version"]), plain)
        ),
    )


@settings(max_examples=60)
@given(logs())
def test_what_is_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, log: DrivingLog
) -> None:
    before = copy.deepcopy(log)
    scenario = to_scenario(log)
    assert read_back(scenario, tmp_path_factory.getbasetemp()) == log
    for track in scenario["tracks"].values():
        track["state"]["position"] += 1  # as MetaDrive does in place
    assert log == before


def test_unnamed_defaults_of_a_log_survive(tmp_path: Path) -> None:
    log = read_back(make_scenario(), tmp_path)
    said = {"id": "scene-1", "coordinate": "metadrive", "fastloop": 1, "start_ns": 5, "sdc_id": "x"}
    log = replace(log, metadata=said)
    assert read_back(to_scenario(log), tmp_path) == log


def test_a_log_without_ego_needs_one_named(tmp_path: Path) -> None:
    log = replace(read_back(make_scenario(), tmp_path), ego=None)
    with pytest.raises(DatasetError, match="ego, a, b, c"):
        to_scenario(log)
    with pytest.raises(DatasetError, match="'nobody'"):
        to_scenario(log, ego="nobody")
    again = read_back(to_scenario(log, ego="a"), tmp_path)
    assert again == replace(log, ego="a")


def test_metadrive_finds_what_it_looks_up(tmp_path: Path) -> None:
    """Its light manager and traffic manager index these without asking."""
    log = read_back(make_scenario(), tmp_path)
    unknown = replace(log.tracks["ego"], size=np.full(3, np.nan))
    lights = {
        "light 9": Signal(("go",) * 4, lane="1"),
        "light 8": Signal(("stop",) * 4, lane="1"),
    }
    log = replace(log, tracks={"ego": unknown}, signals=lights)
    scenario = to_scenario(log)
    state = scenario["tracks"]["ego"]["state"]
    assert (state["length"][log.tracks["ego"].valid] > 1).all()
    assert set(scenario["dynamic_map_states"]) == {"1", "light 8"}
    assert scenario["dynamic_map_states"]["1"]["stop_point"].shape == (3,)
    assert read_back(scenario, tmp_path) == log


@pytest.fixture
def description() -> Any:
    return pytest.importorskip("metadrive.scenario.scenario_description").ScenarioDescription


def test_metadrive_accepts_what_is_written(tmp_path: Path, description: Any) -> None:
    log = read_back(make_scenario(), tmp_path)
    scenario = to_scenario(log)
    description.sanity_check(scenario, check_self_type=True, valid_check=True)


def scenes(realdata: Path) -> list[Path]:
    return sorted((realdata / "nuscenes_mini_scenarionet").glob("*.pkl"))


def test_all_mini_scenes_are_read_and_written(realdata: Path, tmp_path: Path) -> None:
    """Against the pickles themselves, number by number."""
    logs = list(scenarionet.read(realdata / "nuscenes_mini_scenarionet"))
    files = scenes(realdata)
    assert len(logs) == len(files) == 10
    assert sum(len(log.tracks) for log in logs) == 915  # 905 instances and 10 egos
    for log, file in zip(logs, files, strict=True):
        raw = pickles.load(file)
        assert list(log.tracks) == list(raw["tracks"])
        assert [feature.id for feature in log.map] == list(raw["map_features"])
        np.testing.assert_array_equal(log.stamps, np.round(raw["metadata"]["ts"] * 1e9))
        for key, track in raw["tracks"].items():
            valid = track["state"]["valid"] == 1
            np.testing.assert_array_equal(log.tracks[key].valid, valid)
            for name in ("position", "heading", "velocity"):
                values = getattr(log.tracks[key], name)
                np.testing.assert_array_equal(values[valid], track["state"][name][valid])
                assert np.isnan(values[~valid]).all()
            size = [np.median(track["state"][name][valid]) for name in SIZES]
            if key == log.ego:
                assert size == [1.73, 4.08, 1.56]  # the converter's fault
                size = [4.08, 1.73, 1.56]
            assert log.tracks[key].size.tolist() == size
        for feature, was in zip(log.map, raw["map_features"].values(), strict=True):
            points = np.asarray(was["polyline"])
            np.testing.assert_array_equal(feature.points[:, : points.shape[1]], points)
    assert read_back(to_scenario(logs[0]), tmp_path) == logs[0]


def test_metadrive_accepts_the_mini_scenes(realdata: Path, description: Any) -> None:
    for log in scenarionet.read(realdata / "nuscenes_mini_scenarionet"):
        description.sanity_check(to_scenario(log), True, True)


def test_folders_are_read_as_metadrive_reads_them(tmp_path: Path) -> None:
    def write(file: Path, name: Any) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(make_scenario() | {"id": name}))

    for number in (10, 9, 1):
        write(tmp_path / f"{number}.pkl", number)
    (tmp_path / "notes.pkl").write_bytes(b"no scenario")
    assert [log.name for log in scenarionet.read(tmp_path)] == ["1", "9", "10"]

    write(tmp_path / "part" / "sd_b.pkl", "b")
    write(tmp_path / "sd_a.pkl", "a")
    summary = {"sd_b.pkl": {}, "sd_a.pkl": {}, "sd_gone.pkl": {}}
    (tmp_path / scenarionet.SUMMARY).write_bytes(pickle.dumps(summary))
    (tmp_path / "dataset_mapping.pkl").write_bytes(
        pickle.dumps({"sd_b.pkl": "part", "sd_a.pkl": "", "sd_gone.pkl": 3})
    )
    faults: list[DatasetError] = []
    logs = list(scenarionet.read(tmp_path, on_fault=faults.append))
    assert [log.name for log in logs] == ["b", "a"]
    assert "sd_gone" in str(*faults)


def test_a_damaged_file_is_named_and_passed_over(tmp_path: Path) -> None:
    for name in ("sd_a", "sd_b", "sd_c"):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(make_scenario() | {"id": name}))
    (tmp_path / "sd_b.pkl").write_bytes(b"\x80\x04]")
    faults: list[DatasetError] = []
    logs = list(scenarionet.read(tmp_path, on_fault=faults.append))
    assert [log.name for log in logs] == ["sd_a", "sd_c"]
    assert "sd_b.pkl" in str(*faults)
    with pytest.raises(DatasetError, match=r"sd_b\.pkl"):
        list(scenarionet.read(tmp_path))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="sd_"):
        list(scenarionet.read(tmp_path))
    with pytest.raises(DatasetError, match="does not exist"):
        list(scenarionet.read(tmp_path / "sd_gone.pkl"))


PATHS = [
    (), ("id",), ("metadata",), ("metadata", "ts"), ("metadata", "sdc_id"), ("tracks",),
    ("tracks", "ego"), ("tracks", "ego", "type"), ("tracks", "ego", "metadata"),
    *(("tracks", "ego", "state", name) for name in ("position", "heading", "valid", "length")),
    ("map_features",), ("map_features", "1"), ("map_features", "1", "polyline"),
    ("map_features", "1", "polygon"), ("map_features", "6", "position"), ("dynamic_map_states",),
    ("dynamic_map_states", "1"), ("dynamic_map_states", "1", "stop_point"),
    ("dynamic_map_states", "1", "state", "object_state"), ("dynamic_map_states", "1", "metadata"),
]  # fmt: skip
nonsense = st.sampled_from(
    [None, True, -1, 2**70, 1e300, np.inf, np.nan, "", "x", b"x", [], [[]], [[1], [1, 2]], {},
     {1: 2}, set(), [None] * 4, ["1"] * 4, [1] * 4, np.zeros(0), np.zeros((4, 1)), np.zeros((4, 9)),
     np.full(4, 1e300), np.full((4, 3), np.nan), np.array(["a"] * 4), np.ones((1, 1, 1)), 1j]
)  # fmt: skip


@settings(max_examples=200)
@given(st.sampled_from(PATHS), nonsense)
def test_a_scenario_of_nonsense_is_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    scenario: Any = {"": make_scenario()}
    holder, place = scenario, ""
    for step in path:
        holder, place = holder[place], step
    holder[place] = value
    with contextlib.suppress(DatasetError):
        log = read_back(scenario[""], tmp_path_factory.getbasetemp())
        assert read_back(to_scenario(log, ego="ego"), tmp_path_factory.getbasetemp())


@settings(max_examples=25)
@given(st.data())
def test_damaged_bytes_are_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(pickle.dumps(make_scenario()))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    file = tmp_path_factory.getbasetemp() / "sd_damaged.pkl"
    file.write_bytes(damaged)
    with contextlib.suppress(DatasetError):
        list(scenarionet.read(file))
