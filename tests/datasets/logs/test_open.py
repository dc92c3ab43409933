"""Recorded drives of any format are known by their names and read by the reader of their format."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from fastloop.datasets.driving_log import DrivingLog
from fastloop.datasets.errors import DatasetError, raise_fault
from fastloop.datasets.logs import open as opening
from fastloop.datasets.logs import scenarionet
from fastloop.datasets.logs.scenarionet_writer import to_scenario
from fastloop.extras import MissingExtraError

# Files that a path of each format is known by, and the path to open beneath them.
PATHS = {
    "scenarionet": [
        ("sd_a.pkl", "."), ("sd_a.pkl", "sd_a.pkl"), ("12.pkl", "."), ("dataset_summary.pkl", "."),
    ],
    "waymo_motion": [
        ("training.tfrecord-00000-of-01000", "."),
        ("a.tfrecord", "."), ("a.tfrecord-00000-of-01000", "a.tfrecord-00000-of-01000"),
    ],
    "argoverse2": [
        ("scenario_a.parquet", "."), ("scenario_a.parquet", "scenario_a.parquet"),
        ("val/scenario_a.parquet", "."), ("log/annotations.feather", "log"),
        ("log/annotations.feather", "."),
    ],
    "nuscenes": [("v1.0-mini/scene.json", "."), ("v1.0-trainval/scene.json", ".")],
    "lyft": [("sample.zarr/.zgroup", "sample.zarr"), ("sample.zarr/.zgroup", "."),
             ("sample.zarr.zip", "sample.zarr.zip")],
    "comma2k19": [("global_pose/frame_times", "."), ("route/40/global_pose/frame_times", "."),
                  ("route/40/global_pose/frame_times", "route")],
    "commonroad": [("a.xml", "a.xml"), ("a.xml", ".")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "path"), [(name, *pair) for name, pairs in PATHS.items() for pair in pairs]
)
def test_formats_are_known_by_their_names(name: str, file: str, path: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    assert opening.format_of(tmp_path / path) == name


def test_every_format_has_a_reader() -> None:
    assert set(opening.FORMATS) == set(PATHS)
    for name in opening.FORMATS:
        assert callable(import_module(f"fastloop.datasets.logs.{name}").read)


def test_an_unknown_path_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DatasetError) as error:
            opening.open_logs(path)
        assert all(name in str(error.value) for name in opening.FORMATS)
    with pytest.raises(DatasetError, match="does not exist"):
        opening.open_logs(tmp_path / "gone")


def test_faults_are_told_by_the_reader(tmp_path: Path) -> None:
    (tmp_path / "sd_a.pkl").write_bytes(b"no pickle")
    faults: list[DatasetError] = []
    assert list(opening.open_logs(tmp_path, on_fault=faults.append)) == []
    assert "sd_a.pkl" in str(*faults)


RECORDINGS = {
    "nuscenes_mini_scenarionet": 10,
    "waymo_motion": 3,
    "argoverse2/forecasting_scenarios": 1,
    "argoverse2/sensor_log": 1,
    "comma2k19/Example_1": 1,
    "commonroad": 5,
    "lyft_l5_zarr": 1,
}


@pytest.mark.parametrize("folder", RECORDINGS)
def test_recordings_are_opened_and_written_as_scenarios(
    folder: str, realdata: Path, tmp_path: Path
) -> None:
    try:
        logs = list(opening.open_logs(realdata / folder, on_fault=raise_fault))
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert len(logs) == RECORDINGS[folder]
    for log in logs[:2]:
        assert isinstance(log, DrivingLog)
        ego = log.ego or next(iter(log.tracks))
        file = tmp_path / "sd_a.pkl"
        file.write_bytes(pickle.dumps(to_scenario(log, ego=ego)))
        (again,) = scenarionet.read(file)
        assert again == replace(log, ego=ego)
