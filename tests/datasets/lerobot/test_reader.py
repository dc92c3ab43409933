"""Every version is read alike; what is damaged or hostile is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fastloop.datasets import lerobot
from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.windows import Windows

IMAGE = "observation.images.top"
VERSIONS = ["v1", "v2", "v3", "v3_images"]


@pytest.fixture
def copy(request, tmp_path):
    """A dataset that may be damaged."""

    def of(version):
        return shutil.copytree(request.getfixturevalue(version), tmp_path / "set")

    return of


def near(found, expected):
    return np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read_alike(version, request, episodes):
    found = lerobot.read(request.getfixturevalue(version))
    assert len(found) == len(episodes)
    for ours, theirs in zip(episodes, found, strict=True):
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)
        state = theirs.observations["observation.state"]
        np.testing.assert_array_equal(state, ours.observations["observation.state"])
        frames = theirs.observations[IMAGE]
        assert isinstance(frames, LazyFrames)
        assert near(frames[:], ours.observations[IMAGE])
        assert theirs.success == ours.success
        assert theirs.control_hz == 10
        assert theirs.task == ("" if version == "v1" else ours.task)


def test_images_in_tables_lose_nothing(v3_images, v1, episodes):
    for root, key in ((v3_images, IMAGE), (v1, "observation.images.still")):
        for ours, theirs in zip(episodes, lerobot.read(root), strict=True):
            expected = ours.observations[IMAGE]
            np.testing.assert_array_equal(theirs.observations[key][:], expected)
            np.testing.assert_array_equal(theirs.observations[key][[2, 0]], expected[[2, 0]])


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_and_names(version, request):
    root = request.getfixturevalue(version)
    found = lerobot.read(root, ["observation.state"])[0]
    assert set(found.observations) == {"observation.state"}
    found = lerobot.read(root, ["view"], rename={IMAGE: "view"})[0]
    assert found.observations["view"].shape == (5, 3, 16, 32)
    with pytest.raises(DatasetError, match=r"has no gripper; it has .*observation\.state"):
        lerobot.read(root, ["gripper"])


@pytest.mark.parametrize("version", VERSIONS)
def test_windows_are_cut_from_it(version, request):
    found = lerobot.read(request.getfixturevalue(version))
    windows = Windows.of(found, ["observation.state", IMAGE], n_obs_steps=2, horizon=4)
    batch = windows.batch(0, 8, 0)
    assert batch[IMAGE].shape == (8, 2, 3, 16, 32)
    assert batch["action"].shape == (8, 4, 2)


def edit_info(root, **facts):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("../outside.parquet", "leads out of the dataset"),
        ("/etc/passwd", "leads out of the dataset"),
        ("data/../../x", "leads out of the dataset"),
        ("{root.__class__}", "no path of a dataset"),
        ("{nothing}", "cannot have a field {nothing}"),
        ("data/{0.__class__}", "no path of a dataset"),
        ("data/{file_index:999999999d}", "no path of a dataset"),
        ("", "no path of a dataset"),
        (7, "a path is expected, not 7"),
    ],
)
def test_a_template_stays_inside(version, template, told, copy):
    root = copy(version)
    edit_info(root, data_path=template)
    with pytest.raises(DatasetError, match=told):
        lerobot.read(root)


def test_a_feature_does_not_lead_out(copy):
    root = copy("v3")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    names = [name.replace(f"/{IMAGE}/", "/observation/../../../x/") for name in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    features["observation/../../../x"] = features.pop(IMAGE)
    edit_info(root, features=features)
    with pytest.raises(DatasetError, match="leads out"):
        lerobot.read(root, ["observation/../../../x"])


def test_a_video_of_version_1_does_not_lead_out(copy):
    root = copy("v1")
    path = root / "train/data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    shown = [{"path": "../secret.mp4", "timestamp": 0.0}] * len(table)
    at = table.column_names.index(IMAGE)
    table = table.set_column(at, IMAGE, pa.array(shown))
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DatasetError, match="leads out"):
        lerobot.read(root)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"codebase_version": "v4.0"}, "version 4.0; 1, 2 and 3 can be read"),
        ({"codebase_version": "new"}, "not what LeRobot writes"),
        ({"fps": 0}, "must be above 0"),
        ({"fps": float("nan")}, "must be above 0"),
        ({"fps": None}, "not what LeRobot writes"),
        ({"features": []}, "not what LeRobot writes"),
        ({"features": {"observation.x": {"dtype": "video", "shape": [9**9, 9**9, 3]}}}, "shape"),
        ({"features": {"observation.x": {"dtype": "float32", "shape": [-2]}}}, "shape"),
        ({"total_episodes": 4}, "lists 3 episodes, meta/info.json says 4"),
    ],
)
def test_a_description_that_makes_no_sense(facts, told, copy):
    root = copy("v3")
    edit_info(root, **facts)
    with pytest.raises(DatasetError, match=told):
        lerobot.read(root)


def edit_table(path, name, values):
    table = pq.read_table(path)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(values, table.column(name).type)), path)


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("file", "name", "values", "told"),
    [
        (EPISODES, "episode_index", [0, 1, 1], "lists episode 1 twice"),
        (EPISODES, "episode_index", [0, 1, None], "lists episode None"),
        (EPISODES, "episode_index", [0, 1, 5], "has 0 rows of it, expected 7"),
        (EPISODES, "length", [5, 4, 6], "has 7 rows of it, expected 6"),
        (EPISODES, "length", [5, 4, None], "length is None, expected int"),
        (EPISODES, "data/file_index", [0, 0, 1], "file-001.parquet"),
        (EPISODES, f"videos/{IMAGE}/file_index", [0, 0, 1], "file-001.mp4"),
        (EPISODES, f"videos/{IMAGE}/from_timestamp", [0, 0.5, 1.5], "lasts 1.6 s"),
        (EPISODES, f"videos/{IMAGE}/from_timestamp", [0, 0.5, np.nan], "must rise"),
        (DATA, "episode_index", [0] * 5 + [1] * 4 + [2] * 6 + [0], "holds episode 0 twice"),
        (DATA, "episode_index", [-(2**63)] * 5 + [1] * 4 + [2] * 7, "has 0 rows of it, expected 5"),
        (DATA, "frame_index", [*range(5), *range(4), *range(6), 7], "does not count up from 0"),
        (DATA, "timestamp", [0.0] * 16, "timestamps do not rise"),
        (DATA, "timestamp", [None] * 16, "5 gaps"),
    ],
)
def test_tables_that_contradict_each_other(file, name, values, told, copy):
    root = copy("v3")
    edit_table(root / file, name, values)
    with pytest.raises(DatasetError, match=told):
        lerobot.read(root)


def test_one_bad_episode_does_not_hide_the_others(copy):
    root = copy("v3")
    edit_table(root / EPISODES, "length", [5, 3, 7])
    faults: list[DatasetError] = []
    found = lerobot.read(root, on_fault=faults.append)
    assert [len(one) for one in found] == [5, 7]
    assert [("episode 1" in str(fault)) for fault in faults] == [True]


def test_rows_of_different_length(copy):
    root = copy("v3")
    table = pq.read_table(root / DATA)
    ragged = pa.array([[1.0, 2.0, 3.0], [1.0]] * 8, pa.list_(pa.float32()))
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", ragged), root / DATA)
    with pytest.raises(DatasetError, match="rows of 'action' differ in length"):
        lerobot.read(root)
    pq.write_table(table.set_column(at, "action", pa.array(["left"] * 16)), root / DATA)
    with pytest.raises(DatasetError, match="'action' holds string, expected numbers"):
        lerobot.read(root)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"episode_index": 0, "length": 5}\n' * 2, "lists episode 0 twice"),
        ('{"episode_index": -1, "length": 5}\n', "episode -1"),
        ('{"episode_index": 0, "length": 5}\n', "lists 1 episodes"),
        ("[1]\n", "line 1 is no object"),
        ("{", "cannot be read"),
    ],
)
def test_lists_of_episodes_of_version_2(lines, told, copy):
    root = copy("v2")
    (root / "meta/episodes.jsonl").write_text(lines)
    with pytest.raises(DatasetError, match=told):
        lerobot.read(root)


def test_a_table_of_another_episode_is_refused(copy):
    root = copy("v2")
    first, last = (root / f"data/chunk-000/episode_00000{n}.parquet" for n in (0, 2))
    table = pq.read_table(last)
    pq.write_table(pq.read_table(first), last)
    edit = root / "meta/episodes.jsonl"
    edit.write_text(edit.read_text().replace('"length": 7', '"length": 5'))
    assert len(table) == 7
    with pytest.raises(DatasetError, match="holds rows of another episode"):
        lerobot.read(root)


def test_tasks_of_version_2_are_a_list(copy):
    root = copy("v2")
    path = root / "meta/episodes.jsonl"
    lines = [json.loads(line) | {"tasks": 7} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DatasetError, match="tasks is 7, expected a list"):
        lerobot.read(root)


@pytest.mark.parametrize(
    ("version", "file"), [("v3", DATA), ("v1", "train/data-00000-of-00001.arrow")]
)
def test_a_pipe_is_not_waited_for(version, file, copy):
    root = copy(version)
    (root / file).unlink()
    os.mkfifo(root / file)
    with pytest.raises(DatasetError, match="is no file"):
        lerobot.read(root)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"from": [0, 5, 9], "to": [5, 9, 17]}, "rows 9 to 17 of 16"),
        ({"from": [0, 5], "to": [5, 9, 16]}, "do not follow each other"),
        ({"from": [0, 6, 9], "to": [6, 9, 16]}, "does not count up from 0"),
        ({"from": [0, 5, 9]}, "cannot be read"),
    ],
)
def test_indices_of_version_1(index, told, copy):
    root = copy("v1")
    named = {name: np.array(values) for name, values in index.items()}
    save_file(named, root / "meta_data/episode_data_index.safetensors")
    with pytest.raises(DatasetError, match=told):
        lerobot.read(root)


def test_no_dataset_at_all(tmp_path):
    with pytest.raises(DatasetError, match=r"neither meta/info\.json nor meta_data/info\.json"):
        lerobot.read(tmp_path / "nowhere")


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=50)
@given(
    file=st.integers(0, 99),
    kind=st.sampled_from(["flip", "cut", "insert", "replace"]),
    where=st.floats(0, 1, exclude_max=True),
    noise=st.binary(min_size=1, max_size=8),
)
def test_damage_is_data_or_a_fault(request, tmp_path_factory, version, file, kind, where, noise):
    whole = request.getfixturevalue(version)
    root = shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "set")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[file % len(files)]
    data = path.read_bytes()
    at = int(where * len(data))
    rest = noise + data[at + (len(noise) if kind == "flip" else 0) :]
    path.write_bytes({"cut": data[:at], "replace": noise}.get(kind, data[:at] + rest))
    with suppress(DatasetError):
        for one in lerobot.read(root):
            assert one.observations[IMAGE][:].shape[0] == len(one)


def test_real_datasets(realdata):
    made = lerobot.read(realdata / "lerobot_v3_datasets/pusht")
    old = lerobot.read(realdata / "lerobot_v1_episodes/pusht")[0]
    assert [len(one) for one in made] == [80, 81]
    assert made[0].task == "Push the T-shaped block onto the T-shaped target."
    np.testing.assert_array_equal(np.concatenate([one.actions for one in made]), old.actions)
    both = zip(made, np.split(np.asarray(old.observations["observation.image"]), [80]), strict=True)
    for one, frames in both:  # AV1 of the h264 frames
        assert near(one.observations["observation.image"][:], frames)
    for name, length, hz, width, key in (
        ("aloha_sim_insertion_human", 500, 50, 14, "observation.images.top"),
        ("aloha_sim_transfer_cube_human", 400, 50, 14, "observation.images.top"),
        ("umi_cup_in_the_wild", 400, 10, 0, "observation.image"),
        ("xarm_lift_medium", 25, 15, 4, "observation.image"),
    ):
        (one,) = lerobot.read(realdata / "lerobot_v1_episodes" / name)
        assert (len(one), one.control_hz, one.actions.shape[1]) == (length, hz, width)
        assert one.observations[key][[0, -1]].shape[:2] == (2, 3)


def test_what_was_recorded_without_actions_cannot_be_imitated(realdata):
    found = lerobot.read(realdata / "lerobot_v1_episodes/umi_cup_in_the_wild")
    with pytest.raises(ValueError, match="no actions"):
        Windows.of(found, ["observation.state"], n_obs_steps=2, horizon=4)
