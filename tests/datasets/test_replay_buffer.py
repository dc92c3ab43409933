"""diffusion_policy's zarr layout: what is written is read, by zarr too; damage is told."""

import json
import pickle
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import replay_buffer
from fastloop.datasets.demonstration import Demonstration, LazyFrames
from fastloop.datasets.errors import DatasetError

KEYS = {
    "state": "observation.state",
    "img": "observation.images.top",
    "keypoint": "keypoint",
}


@pytest.fixture
def demos():
    rng = np.random.default_rng(0)
    return [
        Demonstration(
            observations={
                "observation.state": rng.normal(size=(n, 5)).astype(np.float32),
                "observation.images.top": rng.integers(0, 256, (n, 3, 4, 6), dtype=np.uint8),
                "keypoint": rng.normal(size=(n, 9, 2)),
            },
            actions=rng.normal(size=(n, 2)).astype(np.float32),
        )
        for n in (3, 1, 8)
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.observations.keys() == other.observations.keys()
        for key, frames in other.observations.items():
            assert one.observations[key].dtype == frames.dtype
            np.testing.assert_array_equal(one.observations[key][:], frames)
        np.testing.assert_array_equal(one.actions, other.actions)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 2_000_000])
def test_what_is_written_is_read(tmp_path, demos, monkeypatch, chunk_bytes):
    monkeypatch.setattr(replay_buffer, "CHUNK_BYTES", chunk_bytes)
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)
    assert_same(replay_buffer.read(path, KEYS), demos)


def test_zarr_reads_what_is_written(tmp_path, demos):
    root = zarr.open_group(replay_buffer.write(tmp_path / "a.zarr", demos, KEYS), mode="r")
    assert sorted(root["data"]) == ["action", "img", "keypoint", "state"]
    np.testing.assert_array_equal(root["meta/episode_ends"][:], [3, 4, 12])
    assert root["meta/episode_ends"].dtype == np.int64
    pictures = np.concatenate([demo.observations["observation.images.top"] for demo in demos])
    np.testing.assert_array_equal(root["data/img"][:], np.moveaxis(pictures, 1, -1))


def test_what_zarr_wrote_is_read(tmp_path):
    root = zarr.create_group(tmp_path / "pusht.zarr", zarr_format=2)
    frames = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.float32)
    state = np.arange(60, dtype=np.float32).reshape(12, 5)
    root.create_array("data/img", data=frames, chunks=(5, 8, 8, 3))
    root.create_array("data/state", data=state, chunks=(5, 5))
    root.create_array("data/action", data=state[:, :2], chunks=(4, 2))
    root.create_array("meta/episode_ends", data=np.array([7, 12]))
    named = replay_buffer.read(tmp_path / "pusht.zarr", {"img": "observation.images.top"})
    assert [len(demo) for demo in named] == [7, 5]
    pictures = named[1].observations["observation.images.top"]
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures[[4, 0, 4]], np.moveaxis(frames[[11, 7, 11]], -1, 1))
    own = replay_buffer.read(tmp_path / "pusht.zarr")
    assert sorted(own[0].observations) == ["img", "state"]
    np.testing.assert_array_equal(own[1].observations["img"][:], frames[7:])
    np.testing.assert_array_equal(own[1].observations["state"], state[7:])
    np.testing.assert_array_equal(own[1].actions, state[7:, :2])


def test_a_zip_is_read(tmp_path, demos):
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)
    archive = shutil.make_archive(tmp_path / "a.zarr", "zip", path)
    assert_same(replay_buffer.read(archive, KEYS), demos)


def test_images_stay_in_the_store_and_pickle(tmp_path, demos):
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)
    frames = replay_buffer.read(path, KEYS)[2].observations["observation.images.top"]
    assert isinstance(frames, LazyFrames)
    again = pickle.loads(pickle.dumps(frames))
    expected = demos[2].observations["observation.images.top"]
    np.testing.assert_array_equal(again[2:5], expected[2:5])


def test_writing_replaces_a_store_and_nothing_else(tmp_path, demos):
    path = tmp_path / "a.zarr"
    replay_buffer.write(path, demos, KEYS)
    replay_buffer.write(path, demos[:1], KEYS)
    assert_same(replay_buffer.read(path, KEYS), demos[:1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(DatasetError, match="no zarr group"):
        replay_buffer.write(tmp_path / "mine", demos, KEYS)


def test_a_failed_write_leaves_what_was_there(tmp_path, demos, monkeypatch):
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replay_buffer, "_write_array", full)
    with pytest.raises(OSError, match="No space"):
        replay_buffer.write(path, demos[:1], KEYS)
    assert_same(replay_buffer.read(path, KEYS), demos)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"action": "observation.state"}, "cannot be stored as 'action'"),
        ({"../x": "observation.state"}, "cannot be stored"),
        ({"state": "observation.velocity"}, "no observation 'observation.velocity'; have:"),
    ],
)
def test_keys_that_cannot_be_written(tmp_path, demos, keys, message):
    with pytest.raises(DatasetError, match=message):
        replay_buffer.write(tmp_path / "a.zarr", demos, keys)


def test_nothing_to_write(tmp_path):
    with pytest.raises(DatasetError, match="nothing to write"):
        replay_buffer.write(tmp_path / "a.zarr", [])


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("data/action/.zarray", {"shape": [11, 2]}, "episodes that end at"),
        ("data/state/.zarray", {"shape": [], "chunks": []}, "data/state is of shape"),
        ("data/action/.zarray", {"shape": [12], "chunks": [12]}, "expected numbers"),
        ("data/img/.zarray", {"dtype": "<i8"}, "images are"),
        ("meta/episode_ends/.zarray", {"dtype": "<f8"}, "whole numbers"),
    ],
)
def test_layouts_that_are_refused(tmp_path, demos, file, changes, message):
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)
    _edit(path / file, **changes)
    with pytest.raises(DatasetError, match=message):
        replay_buffer.read(path, KEYS)


@pytest.mark.parametrize("ends", [[3, 3, 12], [-1, 12], [0, 12], [5, 4]])
def test_episodes_that_go_backwards(tmp_path, demos, ends):
    path = replay_buffer.write(tmp_path / "a.zarr", demos, KEYS)
    root = zarr.open_group(path, mode="a")
    root.create_array("meta/episode_ends", data=np.array(ends), overwrite=True)
    with pytest.raises(DatasetError, match=r"episode_ends goes from|episodes that end"):
        replay_buffer.read(path, KEYS)


@settings(max_examples=40)
@given(st.data())
def test_damage_gives_data_or_a_fault(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "a.zarr"
    frames = np.arange(24.0).reshape(6, 4)
    demo = Demonstration({"state": frames, "img": np.zeros((6, 3, 2, 2))}, frames[:, :2])
    replay_buffer.write(path, [demo, demo])
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, len(content)))
    content[start:end] = data.draw(st.binary(max_size=8))
    file.write_bytes(content)
    try:
        for demo in replay_buffer.read(path):
            demo.observations["img"][:]
    except DatasetError:
        pass
