"""The human demonstrations: as npz and as pickle, of which nothing is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets import adroit_demos
from fastloop.datasets.errors import DatasetError


@pytest.fixture
def paths() -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "observations": rng.normal(size=(n, 39)),
            "actions": 2 * rng.normal(size=(n, 28)),
            "rewards": rng.normal(size=n),
            "init_state_dict": {"door_body_pos": rng.normal(size=3)},
        }
        for n in (5, 3)
    ]


@pytest.fixture
def files(paths: list[dict], tmp_path: Path) -> dict[str, Path]:
    flat = {key: np.concatenate([p[key] for p in paths]) for key in list(paths[0])[:3]}
    doors = np.stack([p["init_state_dict"]["door_body_pos"] for p in paths])
    np.savez(tmp_path / "door.npz", **flat, door_body_pos=doors, episode_ends=[5, 8])
    (tmp_path / "door.pickle").write_bytes(pickle.dumps(paths, protocol=3))
    return {kind: tmp_path / f"door.{kind}" for kind in ("npz", "pickle")}


@pytest.mark.parametrize("kind", ["npz", "pickle"])
def test_episodes_come_out_whole(kind: str, files: dict[str, Path], paths: list[dict]) -> None:
    demonstrations = adroit_demos.read(files[kind])
    assert [len(d) for d in demonstrations] == [5, 3]
    for demonstration, path in zip(demonstrations, paths, strict=True):
        hand = demonstration.observations["observation.state"]
        door = demonstration.observations["observation.environment_state"]
        assert (hand.shape[1], door.shape[1]) == (30, 9)
        together = np.sort(np.concatenate([hand, door], axis=1), axis=1)
        expected = np.sort(path["observations"], axis=1).astype(np.float32)
        np.testing.assert_array_equal(together, expected)
        np.testing.assert_array_equal(door[:, 1], path["observations"][:, 28].astype(np.float32))
        assert np.abs(demonstration.actions).max() <= 1
        assert demonstration.success == (path["observations"][:, 28].max() >= 1.35)
    doors = np.stack([p["init_state_dict"]["door_body_pos"] for p in paths])
    np.testing.assert_array_equal(adroit_demos.door_positions(files[kind]), doors)


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_a_hostile_pickle_is_refused_with_what_it_tried(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "door.pickle"
    path.write_bytes(pickle.dumps([Hostile()]))
    with pytest.raises(DatasetError, match="mkdir"):
        adroit_demos.read(path)
    assert not Path("ran").exists()


def test_damage_is_named(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(DatasetError, match="FASTLOOP_REALDATA"):
        adroit_demos.read(tmp_path / "nowhere.npz")
    for kind, path in files.items():
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DatasetError, match=f"door.{kind}"):
            adroit_demos.read(path)
    np.savez(tmp_path / "other.npz", actions=np.zeros(3))
    with pytest.raises(DatasetError, match="episode_ends"):
        adroit_demos.read(tmp_path / "other.npz")


def test_the_recordings_are_the_ones_described(realdata: Path) -> None:
    path = realdata / "adroit_door_demos" / "door-v0_demos.npz"
    demonstrations = adroit_demos.read(path)
    assert len(demonstrations) == 25
    assert sum(len(d) for d in demonstrations) == 6729
    hinges = [d.observations["observation.environment_state"][:, 1].max() for d in demonstrations]
    assert min(hinges) > 1.0
    assert sum(d.success for d in demonstrations) == 7
    again = adroit_demos.read(path.with_suffix(".pickle"))
    for ours, theirs in zip(demonstrations, again, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)


WRONG = {
    "words": {"actions": np.full((8, 28), "a")},
    "narrow": {"observations": np.zeros((8, 20))},
    "flat": {"observations": np.zeros(8)},
    "short": {"rewards": np.zeros(7)},
    "empty": {"episode_ends": np.array([5, 5, 8])},
    "backwards": {"episode_ends": np.array([9, 8])},
    "unended": {"episode_ends": np.array([5])},
    "fractions": {"episode_ends": np.array([5.0, np.nan])},
    "no episode": {"episode_ends": np.zeros(0, int)},
    "doors": {"door_body_pos": np.zeros((3, 3))},
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_do_not_fit_are_named(what: str, files: dict[str, Path]) -> None:
    arrays = dict(np.load(files["npz"])) | WRONG[what]
    np.savez(files["npz"], **arrays)
    with pytest.raises(DatasetError, match=r"door\.npz: "):
        adroit_demos.read(files["npz"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_data_or_a_fault(files: dict[str, Path], data: st.DataObject) -> None:
    path = files[data.draw(st.sampled_from(["npz", "pickle"]))]
    whole = path.read_bytes()
    raw = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(
        raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    )
    try:
        adroit_demos.read(path)
    except DatasetError:
        pass
    finally:
        path.write_bytes(whole)
