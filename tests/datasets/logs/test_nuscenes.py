"""Scenes of nuScenes as driving logs, against the devkit and against ScenarioNet's copy of mini."""

import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.nuscenes import read

SYNTHETIC = Path(__file__).parents[1] / "nuscenes" / "synthetic.py"


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invented")
    write_root = runpy.run_path(str(SYNTHETIC))["write_root"]
    return write_root(folder, lengths=[9, 8, 7], boxes=60)


@pytest.fixture(scope="module")
def mini(realdata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    archive = realdata / "nuscenes_mini_tables" / "nusc_mini_reconstructed.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("v1.0-mini")).parent


def test_logs_hold_what_the_tables_do(invented):
    first, *others = read(invented)
    assert [len(log) for log in (first, *others)] == [9, 8, 7]
    assert (first.name, first.source, first.ego) == ("scene-0001", "nuscenes", "ego")
    assert first.frame.startswith("map of boston-seaport: x east")
    assert np.diff(first.stamps).tolist() == [500_000_000] * 8
    assert len(first.tracks) == 61
    assert {track.kind for track in first.tracks.values()} == {
        "vehicle", "pedestrian", "cyclist", "barrier", "cone", "other",
    }  # fmt: skip
    for track in first.tracks.values():
        assert track.kind == "cyclist" or track.category != "vehicle.bicycle"
        assert np.isnan(track.position[~track.valid]).all()
    ego = first.tracks["ego"]
    ahead = ego.position - ego.properties["rear_axle"]
    np.testing.assert_allclose(np.arctan2(ahead[:, 1], ahead[:, 0]), ego.heading, atol=1e-9)


def test_velocities_are_those_of_the_devkit(mini):
    pytest.importorskip("nuscenes")
    from nuscenes import NuScenes

    devkit = NuScenes("v1.0-mini", str(mini), verbose=False)
    logs = {log.name: log for log in read(mini / "v1.0-mini")}
    assert len(logs) == 10
    for row in devkit.sample_annotation[::60]:
        sample = devkit.get("sample", row["sample_token"])
        log = logs[devkit.get("scene", sample["scene_token"])["name"]]
        track = log.tracks[row["instance_token"]]
        at = log.metadata["samples"].index(row["sample_token"])
        assert track.valid[at]
        np.testing.assert_array_equal(track.position[at], row["translation"])
        np.testing.assert_allclose(track.velocity[at], devkit.box_velocity(row["token"])[:2])


def test_the_vehicle_drives_as_in_scenarionet_s_copy(mini, realdata):
    from fastloop.datasets.logs import scenarionet

    copies = {log.name: log for log in scenarionet.read(realdata / "nuscenes_mini_scenarionet")}
    for log in read(mini):
        copy = next(copies[name] for name in copies if log.name in name)
        axle = log.tracks["ego"].properties["rear_axle"]
        theirs = copy.tracks[copy.ego]
        # Theirs is at 10 Hz, between keyframes by interpolation.
        np.testing.assert_allclose(axle[:, :2], theirs.position[::5][: len(axle), :2], atol=1e-3)


def test_the_map_around_the_way_is_there_where_maps_are(mini, realdata):
    (log,) = [
        log for log in read(mini, maps=realdata / "nuscenes_maps_drivable") if "0061" in log.name
    ]
    assert {feature.kind for feature in log.map} == {"drivable"}
    points = np.concatenate([feature.points for feature in log.map])
    way = log.tracks["ego"].position
    assert (points.min(0)[:2] < way.min(0)[:2]).all()
    assert (points.max(0)[:2] > way.max(0)[:2]).all()
    assert all(not log.map for log in read(mini, split="mini_val"))


def test_faults_are_told(invented, tmp_path):
    told = []
    (tmp_path / "boston_drivable.json").write_text("{")
    logs = list(read(invented, maps=tmp_path, on_fault=told.append))
    assert len(logs) == 3
    assert [fault for fault in told if "no JSON" not in str(fault)] == []
    with pytest.raises(DatasetError, match="holds 0 releases"):
        list(read(tmp_path))
    with pytest.raises(DatasetError, match="unknown split"):
        list(read(invented, split="typo"))
