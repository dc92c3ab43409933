"""What is written is what is read, in the layout of LeRobot's own writer."""

from __future__ import annotations

import json
import resource

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import lerobot, statistics
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.lerobot import writer

IMAGE = "observation.images.top"
TABLES = (
    "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
)  # fmt: skip


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    width=st.integers(1, 4),
    hz=st.sampled_from([5, 10, 29.97, 50]),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read(lengths, width, hz, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    made = [
        Demonstration(
            {
                "observation.state": rng.normal(size=(n, width)).astype(np.float32),
                "observation.grid": rng.integers(-9, 9, (n, 2, 3)),
                IMAGE: rng.integers(0, 256, (n, 3, 5, 7), dtype=np.uint8),
            },
            rng.normal(size=(n, width)).astype(np.float32),
            rewards=rng.normal(size=n).astype(np.float32),
            success=bool(rng.integers(2)),
            task=str(rng.choice(["push", "", "l\u00f8ft"])),
            control_hz=hz,
        )
        for n in lengths
    ]
    root = tmp_path_factory.mktemp("written") / "set"
    found = lerobot.read(lerobot.write(root, iter(made), use_videos=False))
    assert len(found) == len(made)
    for ours, theirs in zip(made, found, strict=True):
        assert list(theirs.observations) == list(ours.observations)
        for key, frames in ours.observations.items():
            assert theirs.observations[key].dtype == frames.dtype
            np.testing.assert_array_equal(theirs.observations[key], frames)
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)
        assert (theirs.success, theirs.task) == (ours.success, ours.task)
        assert theirs.control_hz == hz


def test_videos_have_the_frames_in_their_places(v3, episodes):
    found = lerobot.read(v3)
    for ours, theirs in zip(episodes, found, strict=True):
        brightness = theirs.observations[IMAGE][:].mean(axis=(1, 2, 3))
        expected = ours.observations[IMAGE].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(brightness, expected, atol=2)


def test_files_follow_each_other(tmp_path, episodes, monkeypatch):
    monkeypatch.setattr(writer, "DATA_FILE_MB", 0)
    monkeypatch.setattr(writer, "VIDEO_FILE_MB", 0)
    monkeypatch.setattr(writer, "FILES_A_FOLDER", 2)
    root = lerobot.write(tmp_path / "set", episodes)
    names = {str(path.relative_to(root)) for path in (root / "data").rglob("*.parquet")}
    assert names == {
        "data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet",
        "data/chunk-001/file-000.parquet",
    }  # fmt: skip
    for ours, theirs in zip(episodes, lerobot.read(root), strict=True):
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        frames = theirs.observations[IMAGE][:].astype(int)
        assert np.abs(frames - ours.observations[IMAGE]).mean() < 3


def test_the_statistics_are_exact(v3_images, episodes):
    found = statistics.read(v3_images / "meta/stats.json")
    for key, expected in statistics.compute(episodes).items():
        for name, value in expected.items():
            np.testing.assert_allclose(found[key][name], value, err_msg=f"{name} of {key}")
    assert found["next.done"]["max"] == 1
    assert found["index"]["max"] == 15


def test_demonstrations_that_differ_are_refused(tmp_path, make_episode):
    root = tmp_path / "set"
    with pytest.raises(DatasetError, match="episode 1 has 4 frames"):
        lerobot.write(root, [make_episode(0, 4), make_episode(1, 4, width=3)])
    blind = Demonstration({}, np.zeros((4, 2), np.float32), control_hz=10)
    with pytest.raises(DatasetError, match=r"episode 1 has .*; the first has"):
        lerobot.write(root, [make_episode(0, 4), blind])
    with pytest.raises(DatasetError, match="no demonstration to write"):
        lerobot.write(root, [])
    with pytest.raises(ValueError, match="give fps="):
        lerobot.write(root, [Demonstration({}, np.zeros((4, 2), np.float32))])
    slashed = Demonstration({"a/b": blind.actions}, blind.actions)
    with pytest.raises(ValueError, match="holds a /"):
        lerobot.write(root, [slashed], fps=5)
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_never_written_over(v3, episodes):
    with pytest.raises(FileExistsError, match="give the dataset a folder of its own"):
        lerobot.write(v3, episodes)


def test_a_full_disk_leaves_nothing(tmp_path, make_episode):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError, match=r"."):
            lerobot.write(tmp_path / "set", [make_episode(0, 30)], use_videos=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_layout_is_that_of_lerobots_writer(realdata, tmp_path):
    """Field by field: names, types and order of columns, descriptions, names of statistics."""
    theirs = realdata / "lerobot_v3_datasets/pusht"
    ours = lerobot.write(tmp_path / "set", lerobot.read(theirs))
    extra = ("next.done", "next.success")
    for table in TABLES:
        expected, found = pq.read_schema(theirs / table), pq.read_schema(ours / table)
        assert [one for one in found if not any(name in one.name for name in extra)] == [*expected]
    info, written = (json.loads((root / "meta/info.json").read_text()) for root in (theirs, ours))
    for name in extra:
        del written["features"][name]
    assert written == info
    expected, found = (statistics.read(root / "meta/stats.json") for root in (theirs, ours))
    assert set(found) - set(extra) == set(expected)
    for key, numbers in expected.items():
        assert set(found[key]) == set(numbers)
        for name, value in numbers.items():
            assert found[key][name].shape == value.shape
            if key != "observation.image" and not name.startswith("q"):
                np.testing.assert_allclose(found[key][name], value, rtol=1e-5)
    rows = [pq.read_table(root / TABLES[1]).to_pylist() for root in (theirs, ours)]
    for expected, found in zip(*rows, strict=True):
        for name, value in expected.items():
            if not name.startswith("stats/"):
                assert found[name] == value
    first = pq.read_table(theirs / TABLES[2]).to_pylist()
    for expected, found in zip(first, pq.read_table(ours / TABLES[2]).to_pylist(), strict=True):
        assert {name: found[name] for name in expected} == expected


def test_the_task_table_is_read_by_pandas(v3):
    pd = pytest.importorskip("pandas")
    tasks = pd.read_parquet(v3 / TABLES[0])
    assert tasks.index.tolist() == ["push", "lift"]
    assert tasks["task_index"].tolist() == [0, 1]
