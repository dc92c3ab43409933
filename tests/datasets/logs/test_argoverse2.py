"""Argoverse 2: scenarios as their rows say, boxes carried into the city, maps with relations."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import argoverse2

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

START = 315_973_157_959_879_000
STEPS = 4


def make_rows() -> dict[str, list[Any]]:
    """The AV over all steps, a cyclist at steps 1 and 3, rows shuffled."""
    seen = [("AV", "vehicle", 1, 2), ("9", "cyclist", 3, 1), ("AV", "vehicle", 1, 0)]
    seen += [("9", "cyclist", 3, 3), ("AV", "vehicle", 1, 1), ("AV", "vehicle", 1, 3)]
    tracks, types, categories, steps = (list(column) for column in zip(*seen, strict=True))
    rows = len(seen)
    return {
        "observed": [step < 2 for step in steps], "track_id": tracks, "object_type": types,
        "object_category": categories, "timestep": steps,
        "position_x": [10.0 + step for step in steps], "position_y": [0.5] * rows,
        "heading": [0.1 * step for step in steps], "velocity_x": [10.0] * rows,
        "velocity_y": [-1.0] * rows, "scenario_id": ["abc"] * rows,
        "start_timestamp": [float(START)] * rows, "end_timestamp": [START + 3e8] * rows,
        "num_timestamps": [STEPS] * rows, "focal_track_id": ["9"] * rows, "city": ["austin"] * rows,
    }  # fmt: skip


def make_map() -> dict[str, Any]:
    def line(*points: tuple[float, float]) -> list[dict[str, float]]:
        return [{"x": x, "y": y, "z": 1.0} for x, y in points]

    def lane(name: int, left: Any, right: Any, **about: Any) -> dict[str, Any]:
        return {
            "id": name, "is_intersection": False, "lane_type": "VEHICLE",
            "left_lane_boundary": left, "left_lane_mark_type": "DOUBLE_SOLID_YELLOW",
            "right_lane_boundary": right, "right_lane_mark_type": "NONE", "predecessors": [7],
            "successors": [8, 9], "left_neighbor_id": 2, "right_neighbor_id": None,
        } | about  # fmt: skip

    middle, below, above = (line((0, y), (10, y)) for y in (0, -4, 4))
    return {
        "lane_segments": {
            "1": lane(1, middle, below, centerline=line((0, -2), (5, -2), (10, -2))),
            # The lane of the other direction has the line between them backwards.
            "2": lane(
                2, middle[::-1], above[::-1], lane_type="BIKE", right_lane_mark_type="SOLID_BLUE"
            ),
        },
        "drivable_areas": {
            "3": {"id": 3, "area_boundary": line((0, -4), (10, -4), (10, 4), (0, 4), (0, -4))}
        },
        "pedestrian_crossings": {
            "4": {"id": 4, "edge1": line((4, -4), (4, 4)), "edge2": line((6, -4), (6, 4))}
        },
    }


def write_scenario(folder: Path, rows: dict[str, list[Any]], archive: Any = None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    parquet.write_table(pa.table(rows), folder / "scenario_abc.parquet")
    if archive is not None:
        (folder / "log_map_archive_abc.json").write_text(json.dumps(archive))
    return folder


POSE_STAMPS = [START - 5, START, START + 50_000_000, START + 100_000_000, START + 200_000_000]
POSE_YAWS = [0.0, 0.0, 0.3, math.pi / 2, math.pi]


def make_cuboids() -> dict[str, list[Any]]:
    """A car 10 m ahead of the vehicle and turned by 0.5 rad, at two stamps; a cone at the first."""
    half = 0.25
    return {
        "timestamp_ns": [START, START + 100_000_000, START, START + 200_000_000],
        "track_uuid": ["car", "car", "cone", "late"],
        "category": ["REGULAR_VEHICLE", "REGULAR_VEHICLE", "CONSTRUCTION_CONE", "BICYCLE"],
        "length_m": [4.0, 5.0, 0.3, 1.0], "width_m": [2.0, 2.0, 0.3, 1.0],
        "height_m": [1.5, 1.5, 0.8, 1.0], "qw": [math.cos(half)] * 2 + [1.0, 1.0],
        "qx": [0.0] * 4, "qy": [0.0] * 4, "qz": [math.sin(half)] * 2 + [0.0, 0.0],
        "tx_m": [10.0, 10.0, 0.0, 0.0], "ty_m": [0.0] * 4, "tz_m": [0.5] * 4,
        "num_interior_pts": [1] * 4,
    }  # fmt: skip


def make_poses() -> dict[str, list[Any]]:
    return {
        "timestamp_ns": POSE_STAMPS, "qw": [math.cos(yaw / 2) for yaw in POSE_YAWS],
        "qx": [0.0] * 5, "qy": [0.0] * 5, "qz": [math.sin(yaw / 2) for yaw in POSE_YAWS],
        "tx_m": [100.0 + i for i in range(5)], "ty_m": [200.0] * 5, "tz_m": [3.0] * 5,
    }  # fmt: skip


def write_sensor_log(
    folder: Path, cuboids: dict[str, list[Any]], poses: dict[str, list[Any]], archive: Any = None
) -> Path:
    (folder / "map").mkdir(exist_ok=True, parents=True)
    for name, columns in (("annotations", cuboids), ("city_SE3_egovehicle", poses)):
        table = pa.table(columns)
        with pa.ipc.new_file(str(folder / f"{name}.feather"), table.schema) as file:
            file.write_table(table)
    if archive is not None:
        name = "log_map_archive_abc____PIT_city_57819.json"
        (folder / "map" / name).write_text(json.dumps(archive))
    return folder


def test_a_scenario_is_read(tmp_path: Path) -> None:
    (log,) = argoverse2.read(write_scenario(tmp_path, make_rows(), make_map()))
    assert (log.name, log.source, log.frame, log.ego) == (
        "abc", "argoverse2", "city frame of austin", "AV",
    )  # fmt: skip
    np.testing.assert_allclose(log.stamps - START, np.arange(4) * 1e8, atol=64)
    assert log.metadata == {"city": "austin", "focal_track_id": "9", "observed_steps": 2}
    assert list(log.tracks) == ["AV", "9"]
    rider = log.tracks["9"]
    assert (rider.kind, rider.category, rider.properties) == (
        "cyclist", "cyclist", {"object_category": 3},
    )  # fmt: skip
    assert rider.valid.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(rider.position[3], [13, 0.5, 0])
    np.testing.assert_allclose(rider.heading[[1, 3]], [0.1, 0.3])
    assert np.isnan(rider.velocity[0]).all()
    assert np.isnan(rider.size).all()


def test_boxes_are_carried_into_the_city(tmp_path: Path) -> None:
    folder = write_sensor_log(tmp_path / "log-1", make_cuboids(), make_poses(), make_map())
    (log,) = argoverse2.read(folder)
    assert (log.name, log.frame, log.ego) == ("log-1", "city frame of PIT", "AV")
    assert (log.stamps - START).tolist() == [0, 100_000_000, 200_000_000]
    ego, car = log.tracks["AV"], log.tracks["car"]
    np.testing.assert_allclose(ego.position, [[101, 200, 3], [103, 200, 3], [104, 200, 3]])
    np.testing.assert_allclose(ego.heading, [0, math.pi / 2, math.pi])
    # Ahead is along x at first, and along y once the vehicle has turned left.
    np.testing.assert_allclose(car.position[:2], [[111, 200, 3.5], [103, 210, 3.5]])
    np.testing.assert_allclose(car.heading[:2], [0.5, math.pi / 2 + 0.5])
    np.testing.assert_allclose(car.velocity[:2], [[-80, 100]] * 2)
    np.testing.assert_array_equal(car.size, [4.5, 2, 1.5])
    assert car.valid.tolist() == [True, True, False]
    assert {key: track.kind for key, track in log.tracks.items()} == {
        "car": "vehicle", "cone": "cone", "late": "other", "AV": "vehicle",
    }  # fmt: skip
    assert np.isnan(log.tracks["cone"].velocity).all()


def test_the_map_is_read_with_its_relations(tmp_path: Path) -> None:
    (log,) = argoverse2.read(write_scenario(tmp_path, make_rows(), make_map()))
    assert [(feature.id, feature.kind, feature.category) for feature in log.map] == [
        ("1", "lane", "LANE_SURFACE_STREET"), ("2", "lane", "LANE_BIKE_LANE"),
        ("1_left", "lane_line", "ROAD_LINE_SOLID_DOUBLE_YELLOW"),
        ("2_right", "lane_line", "SOLID_BLUE"), ("3", "drivable", "DRIVABLE"),
        ("4", "crosswalk", "CROSSWALK"),
    ]  # fmt: skip
    first, second, *_, area, crossing = log.map
    np.testing.assert_array_equal(first.points[:, :2], [[0, -2], [5, -2], [10, -2]])
    # Halfway between its boundaries, where no center is given.
    np.testing.assert_allclose(second.points[:, 1], 2)
    np.testing.assert_allclose(second.points[[0, -1], 0], [10, 0])
    np.testing.assert_array_equal(first.outline[:, :2], [[0, 0], [10, 0], [10, -4], [0, -4]])
    assert first.properties["entry_lanes"] == ["7"]
    assert first.properties["exit_lanes"] == ["8", "9"]
    assert (first.properties["left_neighbor"], first.properties["right_neighbor"]) == (["2"], [])
    assert (len(area.points), area.area) == (4, True)
    np.testing.assert_array_equal(crossing.points[:, :2], [[4, -4], [4, 4], [6, 4], [6, -4]])


def test_folders_and_files_are_read(tmp_path: Path) -> None:
    write_scenario(tmp_path / "b", make_rows() | {"scenario_id": ["b"] * 6})
    write_scenario(tmp_path / "a", make_rows())
    write_sensor_log(tmp_path / "c", make_cuboids(), make_poses())
    (tmp_path / "notes").mkdir()
    assert [log.name for log in argoverse2.read(tmp_path)] == ["abc", "b", "c"]
    (log,) = argoverse2.read(tmp_path / "b" / "scenario_abc.parquet")
    assert (log.name, log.map) == ("b", ())
    with pytest.raises(DatasetError, match=r"annotations\.feather"):
        list(argoverse2.read(tmp_path / "notes"))
    with pytest.raises(DatasetError, match="does not exist"):
        list(argoverse2.read(tmp_path / "gone"))


ROWS: dict[str, tuple[str, Any, str]] = {
    "no heading": ("heading", None, "heading"),
    "words for numbers": ("heading", ["x"] * 6, "expected numbers"),
    "a hole": ("heading", [None, *[0.0] * 5], "or nothing"),
    "a step too far": ("timestep", [4] * 6, "not within its 4"),
    "a step before the first": ("timestep", [-1] * 6, "not within its 4"),
    "one place at two times": ("timestep", [0] * 6, "twice"),
    "a span of nothing": ("end_timestamp", [float(START)] * 6, "no nanoseconds"),
    "times without end": ("end_timestamp", [float("inf")] * 6, "no nanoseconds"),
    "more steps than can be": ("num_timestamps", [2**40] * 6, "stamps"),
    "no steps": ("num_timestamps", [0] * 6, "not within"),
    "two scenarios": ("scenario_id", ["a"] * 5 + ["b"], "not the same"),
    "nowhere": ("position_x", [float("nan")] * 6, "not finite"),
}


@pytest.mark.parametrize("what", ROWS)
def test_what_is_wrong_with_rows_is_said(what: str, tmp_path: Path) -> None:
    column, values, message = ROWS[what]
    rows = make_rows() | {column: values}
    folder = write_scenario(tmp_path, {k: v for k, v in rows.items() if v is not None})
    with pytest.raises(DatasetError, match=message):
        list(argoverse2.read(folder))


def test_a_log_without_its_pose_is_passed_over(tmp_path: Path) -> None:
    write_sensor_log(
        tmp_path / "a", make_cuboids() | {"timestamp_ns": [START, START + 1] * 2}, make_poses()
    )
    write_sensor_log(tmp_path / "b", make_cuboids(), make_poses() | {"qw": [0.0] * 5})
    write_sensor_log(tmp_path / "c", make_cuboids(), make_poses())
    (
        write_sensor_log(tmp_path / "d", make_cuboids(), make_poses())
        / "city_SE3_egovehicle.feather"
    ).unlink()
    faults: list[DatasetError] = []
    assert [log.name for log in argoverse2.read(tmp_path, on_fault=faults.append)] == ["c"]
    messages = [str(fault) for fault in faults]
    assert str(START + 1) in messages[0]
    assert "unit quaternion" in messages[1]
    assert "does not exist" in messages[2]


def make_scenario_file(folder: Path) -> Path:
    return write_scenario(folder, make_rows(), make_map()) / "scenario_abc.parquet"


def make_map_file(folder: Path) -> Path:
    return write_scenario(folder, make_rows(), make_map()) / "log_map_archive_abc.json"


def make_annotations(folder: Path) -> Path:
    return write_sensor_log(folder, make_cuboids(), make_poses()) / "annotations.feather"


@settings(max_examples=60)
@given(st.sampled_from([make_scenario_file, make_map_file, make_annotations]), st.data())
def test_damaged_files_are_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], Path], data: st.DataObject
) -> None:
    file = make(tmp_path_factory.getbasetemp() / make.__name__)
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    file.write_bytes(
        data.draw(st.binary(max_size=40)) if data.draw(st.integers(0, 9)) == 0 else damaged
    )
    with contextlib.suppress(DatasetError):
        list(argoverse2.read(file.parent))


PLACES = [
    (), ("lane_segments",), ("lane_segments", "1"), ("lane_segments", "1", "centerline"),
    ("lane_segments", "1", "left_lane_boundary"), ("lane_segments", "1", "left_lane_mark_type"),
    ("lane_segments", "1", "successors"), ("lane_segments", "1", "id"),
    ("drivable_areas", "3", "area_boundary"), ("pedestrian_crossings", "4", "edge1"),
]  # fmt: skip
nonsense = st.sampled_from(
    [None, 0, 1e400, "x", [], [{}], [[]], {}, [{"x": "1", "y": "1", "z": "1"}], [{"x": 1, "y": 2}],
     [{"x": 1, "y": 2, "z": None}], [{"x": 10**400, "y": 2, "z": 3}], 2]
)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(PLACES), nonsense)
def test_a_map_of_nonsense_is_data_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    archive: Any = {"": make_map()}
    holder, place = archive, ""
    for step in path:
        holder, place = holder[place], step
    holder[place] = value
    folder = write_scenario(tmp_path_factory.getbasetemp() / "nonsense", make_rows(), archive[""])
    with contextlib.suppress(DatasetError):
        list(argoverse2.read(folder))


def test_a_map_without_bottom_is_a_fault(tmp_path: Path) -> None:
    folder = write_scenario(tmp_path, make_rows())
    (folder / "log_map_archive_abc.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="no map"):
        list(argoverse2.read(folder))


def test_the_recorded_scenario_is_read_row_by_row(realdata: Path) -> None:
    (log,) = argoverse2.read(realdata / "argoverse2" / "forecasting_scenarios")
    (file,) = (realdata / "argoverse2" / "forecasting_scenarios").glob("*/*.parquet")
    rows = parquet.read_table(file).to_pylist()
    assert (len(log), len(log.tracks)) == (110, 58)
    np.testing.assert_array_equal(np.diff(log.stamps), 100_000_000)
    for row in rows:
        track, step = log.tracks[row["track_id"]], row["timestep"]
        assert tuple(track.position[step]) == (row["position_x"], row["position_y"], 0)
        assert tuple(track.velocity[step]) == (row["velocity_x"], row["velocity_y"])
        assert track.heading[step] == row["heading"]
        assert track.category == row["object_type"]
    assert sum(track.valid.sum() for track in log.tracks.values()) == len(rows)
    lanes = {feature.id for feature in log.map if feature.kind == "lane"}
    known = [
        o for f in log.map if f.kind == "lane" for o in f.properties["exit_lanes"] if o in lanes
    ]
    assert (len(lanes), len(log.map)) == (71, 116)
    assert len(known) > 50


def test_the_recorded_sensor_log_agrees_with_its_poses(realdata: Path) -> None:
    folder = realdata / "argoverse2" / "sensor_log" / "adcf7d18"
    (log,) = argoverse2.read(folder)
    assert (len(log), len(log.tracks), log.frame) == (156, 147, "city frame of PIT")
    poses = pa.ipc.open_file(folder / "city_SE3_egovehicle.feather").read_all().to_pydict()
    matrices = {
        stamp: np.block([
            [Rotation.from_quat(q).as_matrix(), np.array(t)[:, None]], [np.zeros((1, 3)), 1],
        ])
        for stamp, q, t in zip(
            poses["timestamp_ns"],
            zip(*(poses[name] for name in ("qx", "qy", "qz", "qw")), strict=True),
            zip(*(poses[name] for name in ("tx_m", "ty_m", "tz_m")), strict=True),
            strict=True,
        )
    }  # fmt: skip
    boxes = pa.ipc.open_file(folder / "annotations.feather").read_all().to_pylist()
    steps = {int(stamp): step for step, stamp in enumerate(log.stamps)}
    for row in boxes[::50]:
        track, step = log.tracks[row["track_uuid"]], steps[row["timestamp_ns"]]
        center = matrices[row["timestamp_ns"]] @ [row["tx_m"], row["ty_m"], row["tz_m"], 1]
        np.testing.assert_allclose(track.position[step], center[:3], atol=1e-9)
    # What stands still in the city has moved in the frame of the vehicle.
    signs = [track for track in log.tracks.values() if track.category == "SIGN"]
    assert signs
    for sign in signs:
        assert np.ptp(sign.position[sign.valid], axis=0).max() < 0.5
    lanes = np.concatenate([feature.points for feature in log.map if feature.kind == "lane"])
    ego = log.tracks["AV"].position[::20]
    nearest = np.linalg.norm(ego[:, None, :2] - lanes[None, :, :2], axis=2).min(axis=1)
    assert nearest.max() < 5
