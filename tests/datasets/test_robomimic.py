"""Demonstrations through a file and back, and files that are not what they should be."""

from __future__ import annotations

import json
import multiprocessing
import resource
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration, DemonstrationError
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.robomimic import read, write


def demonstration(n: int, seed: int = 0, success: bool = True) -> Demonstration:
    rng = np.random.default_rng(seed)
    return Demonstration(
        observations={
            "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
            "observation.images.top": rng.integers(0, 255, (n, 3, 4, 4), dtype=np.uint8),
        },
        actions=rng.normal(size=(n, 2)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        seed=seed,
        success=success,
    )


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_what_is_written_is_read(lengths: list[int], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("demos") / "demos.hdf5"
    made = [demonstration(n, seed, seed % 2 == 0) for seed, n in enumerate(lengths)]
    write(path, made, env_args={"env_name": "here"})
    found = read(path)
    assert [(d.seed, d.success, len(d)) for d in found] == [
        (d.seed, d.success, len(d)) for d in made
    ]
    for ours, theirs in zip(made, found, strict=True):
        assert set(ours.observations) == set(theirs.observations)
        for key, value in ours.observations.items():
            assert theirs.observations[key].dtype == value.dtype
            np.testing.assert_array_equal(theirs.observations[key], value)
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{seed}.hdf5", [demonstration(3, seed)], env_args={"env_name": "x"})
        for seed in (5, 2)
    ]
    assert [found.seed for found in read(paths, iter(["observation.state"]))] == [5, 2]
    assert [set(found.observations) for found in read(paths, iter(["observation.state"]))] == [
        {"observation.state"}
    ] * 2
    with pytest.raises(DemonstrationError, match=r"gone\.hdf5 does not exist"):
        read([paths[0], tmp_path / "gone.hdf5"])


def test_the_layout_is_robomimics(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.hdf5", [demonstration(4), demonstration(3)], env_args={"env_name": "x"}
    )
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 7
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "x"
        assert file["data/demo_1"].attrs["num_samples"] == 3
        assert file["data/demo_0/dones"][:].tolist() == [0, 0, 0, 1]
        assert file["data/demo_0/obs/observation.state"].shape == (4, 3)


def test_a_file_by_robomimic_with_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "theirs.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(11):
            group = file.create_group(f"data/demo_{i}")
            group["actions"] = np.full((2, 7), float(i))
            group["obs/robot0_eef_pos"] = np.zeros((2, 3))
        file["mask/train"] = np.array([b"demo_2", b"demo_10"])
    assert [d.actions[0, 0] for d in read(path)] == list(range(11))
    assert [d.actions[0, 0] for d in read(path, mask="train")] == [2, 10]
    with pytest.raises(DemonstrationError, match="train"):
        read(path, mask="valid")
    with pytest.raises(DemonstrationError, match="robot0_eef_pos"):
        read(path, ["observation.state"])


def test_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        file["data/demo_0/obs/x"] = np.zeros((2, 1))
    with pytest.raises(DemonstrationError, match="objects"):
        read(path)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="fastloop record"):
        read(tmp_path / "nowhere.hdf5")
    path = write(tmp_path / "cut.hdf5", [demonstration(50)], env_args={})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DemonstrationError, match=r"cut\.hdf5"):
        read(path)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["episodes"] = np.zeros(3)
    with pytest.raises(DemonstrationError, match="episodes"):
        read(tmp_path / "other.hdf5")
    with pytest.raises(DemonstrationError, match="3 frames for 2 actions"):
        Demonstration({"x": np.zeros((3, 1))}, np.zeros((2, 1), np.float32))


def test_large_images_stay_in_the_file(tmp_path: Path, monkeypatch) -> None:
    made = [demonstration(5, seed) for seed in range(3)]
    path = write(tmp_path / "demos.hdf5", made, env_args={})
    monkeypatch.setattr(robomimic, "IMAGES_IN_MEMORY", 2 * 5 * 48)
    found = read(path)
    for ours, theirs in zip(made, found, strict=True):
        images = theirs.observations["observation.images.top"]
        assert isinstance(images, robomimic.StoredFrames)
        assert isinstance(theirs.observations["observation.state"], np.ndarray)
        expected = ours.observations["observation.images.top"]
        for index in (0, slice(1, 4), np.array([3, 0, 0, -1])):
            np.testing.assert_array_equal(images[index], expected[index])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.map(images.__getitem__, [2])[0], expected[2])
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DemonstrationError, match=r"demos\.hdf5 is damaged"):
        images[0]


def test_a_raw_recording_of_robosuite_says_what_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_1/actions"] = np.zeros((2, 7))
        file["data/demo_1/states"] = np.zeros((2, 30))
    with pytest.raises(DemonstrationError, match=r"raw recording .* dataset_states_to_obs"):
        read(tmp_path / "demo.hdf5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "a.hdf5", [demonstration(3)], env_args={})


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["flip", "cut", "insert"]), where=st.floats(0, 1, exclude_max=True),
    noise=st.binary(min_size=1, max_size=8),
)  # fmt: skip
def test_a_damaged_file_is_data_or_a_fault(whole, kind, where, noise, tmp_path_factory) -> None:
    data = whole.read_bytes()
    path = tmp_path_factory.mktemp("damaged") / "demos.hdf5"
    at = int(where * len(data))
    rest = b"" if kind == "cut" else noise + data[at + (len(noise) if kind == "flip" else 0) :]
    path.write_bytes(data[:at] + rest)
    with suppress(DatasetError):
        assert all(len(one) == len(one.actions) for one in read(path))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", [demonstration(4)], env_args={})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"demos\.hdf5"):
            write(path, (demonstration(300, seed) for seed in range(40)), env_args={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read(path)[0]) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["demos.hdf5"]


def test_what_is_no_episode_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "named.hdf5", "w") as file:
        file["data/best/actions"] = np.zeros((2, 1))
    with pytest.raises(DemonstrationError, match="data/best; expected data/demo_<number>"):
        read(tmp_path / "named.hdf5")
    with h5py.File(tmp_path / "nested.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((2, 1))
        file["data/demo_0/obs/arm/joints"] = np.zeros((2, 1))
    with pytest.raises(DemonstrationError, match="obs/arm is a group"):
        read(tmp_path / "nested.hdf5")
    with h5py.File(tmp_path / "array.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(DemonstrationError, match="under 'data'"):
        read(tmp_path / "array.hdf5")


def test_other_files_are_not_followed(tmp_path: Path, monkeypatch) -> None:
    """HDF5 can name another file, of any kind, as the place of an array's numbers."""
    secret = np.arange(48, dtype=np.uint8).reshape(2, 3, 4, 2)
    (tmp_path / "secret").write_bytes(secret.tobytes())
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["x"] = secret
    layout = h5py.VirtualLayout(secret.shape, np.uint8)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.hdf5", "x", secret.shape)

    def external_link(group: h5py.Group) -> None:
        group["x"] = h5py.ExternalLink(tmp_path / "secret.hdf5", "x")

    def external_bytes(group: h5py.Group) -> None:
        group.create_dataset("x", secret.shape, "u1", external=[(tmp_path / "secret", 0, 48)])

    def virtual(group: h5py.Group) -> None:
        group.create_virtual_dataset("x", layout)

    for link in (external_link, external_bytes, virtual):
        path = write(tmp_path / "a.hdf5", [demonstration(2)], env_args={})
        with h5py.File(path, "a") as file:
            link(file["data/demo_0/obs"])
        for most in (2**30, 0):  # in memory, and left in the file
            monkeypatch.setattr(robomimic, "IMAGES_IN_MEMORY", most)
            with pytest.raises(DemonstrationError, match=r"is in another file|the file has not"):
                read(path, ["x"])


def test_a_seed_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", [demonstration(2)], env_args={})
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["seed"] = np.inf
    with pytest.raises(DemonstrationError, match=r"a\.hdf5 is damaged"):
        read(path)


def test_few_numbers_under_many_names_are_refused(tmp_path: Path) -> None:
    for name, target in (
        ("demo_0/obs/again", "demo_0/obs/observation.state"),
        ("demo_1", "demo_0"),
    ):
        path = write(tmp_path / "a.hdf5", [demonstration(2)], env_args={})
        with h5py.File(path, "a") as file:
            file[f"data/{name}"] = file[f"data/{target}"]
        with pytest.raises(DemonstrationError, match="name"):
            read(path)


def test_rows_beyond_those_asked_for_stay_in_the_file(tmp_path: Path) -> None:
    seen = {"map": np.arange(60.0).reshape(3, 5, 4), "route": np.arange(6.0).reshape(3, 2)}
    made = Demonstration(seen, np.zeros((3, 1), np.float32))
    path = robomimic.write(tmp_path / "drives.hdf5", [made], env_args={})
    (read,) = robomimic.read(path, rows={"map": 2, "lights": 1})
    np.testing.assert_array_equal(read.observations["map"], seen["map"][:, :2])
    np.testing.assert_array_equal(read.observations["route"], seen["route"])
