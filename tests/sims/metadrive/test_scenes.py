"""Scenes that cannot be driven in are named, passed over and counted."""

import pickle
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.scenarionet_writer import to_scenario
from fastloop.sims.metadrive.scenes import read_scenes, scene_of

roads = runpy.run_path(str(Path(__file__).with_name("roads.py")))
going, straight, write = roads["going"], roads["straight"], roads["write"]


def with_ego(log, **changes):
    return replace(log, tracks={**log.tracks, "ego": replace(log.tracks["ego"], **changes)})


def unseen(log, *indices):
    ego = log.tracks["ego"]
    valid = ego.valid.copy()
    valid[list(indices)] = False
    gone = {
        name: np.where(valid.reshape(-1, *(1,) * (values.ndim - 1)), values, np.nan)
        for name, values in vars(ego).items()
        if name in ("position", "heading", "velocity")
    }
    return with_ego(log, valid=valid, **gone)


FAULTS = {
    "no map": (lambda log: replace(log, map=()), "has no map"),
    "no ego": (lambda log: replace(log, ego=None), "has no ego"),
    "vanished": (lambda log: unseen(log, 30, 31), "is not there at 3.0 s"),
    "seen once": (lambda log: unseen(log, *range(1, 60)), "was seen 1 times"),
    "parked": (lambda log: replace(log, tracks={"ego": going(400, -300, 1)}), "parked"),
    "degrees": (lambda log: with_ego(log, heading=np.full(60, 90.0)), "headings must be in rad"),
    "left-handed": (
        lambda log: with_ego(log, position=log.tracks["ego"].position[:, [1, 0, 2]]),
        "across its heading",
    ),
    "other frame": (
        lambda log: with_ego(log, position=log.tracks["ego"].position - [0, 500, 0]),
        "map is of another frame",
    ),
    "kilometers": (
        lambda log: with_ego(log, position=log.tracks["ego"].position * [1000, 1, 1]),
        "jumps",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_have_names(name):
    spoil, message = FAULTS[name]
    with pytest.raises(DatasetError, match=f"straight.*{message}"):
        scene_of(spoil(straight()))


def test_good_scenes_are_kept_and_bad_ones_counted(tmp_path):
    write(tmp_path, straight("a"), replace(straight("b"), map=()), straight("c"))
    scenario = to_scenario(straight("d"))
    scenario["tracks"]["beside"]["state"]["position"][5] = np.nan
    (tmp_path / "sd_d.pkl").write_bytes(pickle.dumps(scenario))
    (tmp_path / "sd_e.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    scenes, faults = read_scenes([tmp_path], min_distance=10)
    assert [scene.log.name for scene in scenes] == ["a", "c"]
    assert len(faults) == 3
    for fault, words in zip(
        sorted(map(str, faults)), ("sd_d.pkl", "sd_e.pkl", "b has no map"), strict=True
    ):
        assert words in fault


def test_an_error_when_nothing_is_left(tmp_path):
    write(tmp_path, replace(straight("b"), map=()))
    with pytest.raises(DatasetError, match=r"no scene to drive in:\n  b has no map"):
        read_scenes([tmp_path], min_distance=10)
    with pytest.raises(DatasetError, match="no paths"):
        read_scenes([], min_distance=10)
    with pytest.raises(DatasetError, match="does not exist"):
        read_scenes([tmp_path / "nowhere"], min_distance=10)


def test_any_rate_becomes_ten_a_second():
    log = straight()
    half = log.at(log.stamps[::5])
    scene = scene_of(half)
    assert len(scene.log) == 56
    ego = scene.log.tracks["ego"]
    np.testing.assert_allclose(ego.position[:, 0], 400 + 0.8 * np.arange(56), atol=1e-6)
    np.testing.assert_allclose(scene.recorded[:, :2], ego.position[:, :2])


def test_velocities_that_are_not_known_come_from_the_way():
    log = straight()
    blind = {
        key: replace(track, velocity=np.full_like(track.velocity, np.nan))
        for key, track in log.tracks.items()
    }
    seen = scene_of(replace(log, tracks=blind)).log
    for key, track in log.tracks.items():
        np.testing.assert_allclose(seen.tracks[key].velocity, track.velocity, atol=1e-6)


def test_stamps_that_leap_become_even_and_who_is_never_seen_is_left_out():
    log = straight()
    late = log.tracks["ego"].position.copy()
    late[-5:, 0] -= 3.0  # the last poses go back in time
    beside = log.tracks["beside"]
    never = replace(beside, valid=np.zeros(60, bool), position=np.full((60, 3), np.nan))
    spoiled = with_ego(log, position=late)
    scene = scene_of(replace(spoiled, tracks={**spoiled.tracks, "beside": never}))
    assert len(scene.log) == 55
    assert set(scene.log.tracks) == {"ego", "ahead", "walker", "cone"}
    np.testing.assert_allclose(np.diff(scene.recorded[:, 0]), 0.8, atol=1e-6)


def test_the_recorders_axle_of_nuscenes_is_put_under_its_middle():
    log = replace(straight(), source="nuscenes")
    ego = scene_of(log).log.tracks["ego"]
    np.testing.assert_allclose(ego.position[:, 0] - log.tracks["ego"].position[:, 0], 1.44)
    known = with_ego(log, properties={"rear_axle": log.tracks["ego"].position})
    np.testing.assert_array_equal(
        scene_of(known).log.tracks["ego"].position, log.tracks["ego"].position
    )
