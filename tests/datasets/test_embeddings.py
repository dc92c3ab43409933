"""Embeddings are written demonstration by demonstration, and never mistaken for others."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration, DemonstrationError
from fastloop.datasets.embeddings import EMBEDDING, Embeddings

KEYS = ("observation.state", "observation.images.top")


def demonstration(length, seed):
    random = np.random.default_rng(seed)
    return Demonstration(
        observations={
            "observation.state": random.normal(size=(length, 2)).astype("f4"),
            "observation.images.top": random.integers(256, size=(length, 3, 8, 8), dtype="u1"),
        },
        actions=random.normal(size=(length, 2)).astype("f4"),
    )


@pytest.fixture
def demonstrations():
    return [demonstration(length, seed) for seed, length in enumerate((5, 1, 7))]


class Encoder:
    """Means of images beside the state; fails at the nth demonstration."""

    def __init__(self, fails_at=None):
        self.calls = 0
        self.fails_at = fails_at

    def __call__(self, frames):
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.calls += 1
        assert tuple(frames) == KEYS
        means = np.asarray(frames[KEYS[1]]).mean((1, 2, 3), dtype="f8")
        return np.concatenate([frames[KEYS[0]], means[:, None]], axis=1)


def store(path, demonstrations, encode=None, *, keys=KEYS, encoder="an encoder"):
    return Embeddings(path, demonstrations, keys, encode or Encoder(), encoder=encoder)


def test_what_is_read_is_what_the_encoder_made(demonstrations, tmp_path):
    made = store(tmp_path / "deep/store.hdf5", demonstrations)
    assert list(made.write()) == [1, 2, 3]
    for got, demo in zip(made.read(["observation.state"]), demonstrations, strict=True):
        assert set(got.observations) == {EMBEDDING, "observation.state"}
        expected = Encoder()(demo.observations).astype("f4")
        assert got.observations[EMBEDDING].dtype == np.float32
        np.testing.assert_array_equal(got.observations[EMBEDDING], expected)
        np.testing.assert_array_equal(got.actions, demo.actions)
    assert [set(d.observations) for d in made.read()] == [{EMBEDDING}] * 3
    with h5py.File(made.path) as file:
        assert sorted(file["data/demo_1"]) == ["embedding"]
        assert dict(file.attrs) == {
            "format": "fastloop.embeddings", "version": 1, "digest": made.digest,
        }  # fmt: skip
    assert [path.name for path in made.path.parent.iterdir()] == ["store.hdf5"]


def test_a_store_that_is_there_is_not_written_again(demonstrations, tmp_path):
    list(store(tmp_path / "store.hdf5", demonstrations).write())
    encode = Encoder()
    again = store(tmp_path / "store.hdf5", demonstrations, encode)
    assert list(again.write()) == [3]
    assert encode.calls == 0
    assert len(again.read()) == 3


def changed(demo, *, actions=None, **observations):
    observations = dict(demo.observations) | observations
    return dataclasses.replace(
        demo, observations=observations, actions=demo.actions if actions is None else actions
    )


def with_other_images(demo):
    images = demo.observations[KEYS[1]].copy()
    images[-1, 0, 0, 0] ^= 1
    return changed(demo, **{KEYS[1]: images})


def with_other_state(demo):
    state = demo.observations[KEYS[0]].copy()
    state[1, 1] += 1
    return changed(demo, **{KEYS[0]: state})


@pytest.mark.parametrize(
    "change",
    [
        lambda demos: demos[:2],
        lambda demos: [demos[1], demos[0], demos[2]],
        lambda demos: [changed(demos[0], actions=demos[0].actions + 1), *demos[1:]],
        lambda demos: [with_other_images(demos[0]), *demos[1:]],
        lambda demos: [with_other_state(demos[0]), *demos[1:]],
    ],
    ids=["fewer", "another order", "actions", "last image", "a state"],
)
def test_a_store_of_other_demonstrations_is_refused(demonstrations, tmp_path, change):
    first = store(tmp_path / "store.hdf5", demonstrations)
    list(first.write())
    before = first.path.read_bytes()
    other = store(tmp_path / "other.hdf5", change(demonstrations))
    assert other.digest != first.digest
    with pytest.raises(DemonstrationError, match=f"{first.digest}.*{other.digest}.*delete it"):
        store(first.path, change(demonstrations))
    assert first.path.read_bytes() == before


@pytest.mark.parametrize("other", [{"encoder": "another"}, {"keys": KEYS[::-1]}])
def test_a_store_of_another_encoder_is_refused(demonstrations, tmp_path, other):
    list(store(tmp_path / "store.hdf5", demonstrations).write())
    with pytest.raises(DemonstrationError, match="another encoder"):
        store(tmp_path / "store.hdf5", demonstrations, **other)


def test_demonstrations_read_again_are_the_same(demonstrations, tmp_path):
    path = robomimic.write(tmp_path / "demos.hdf5", demonstrations, env_args={})
    list(store(tmp_path / "store.hdf5", robomimic.read(path)).write())
    assert len(store(tmp_path / "store.hdf5", robomimic.read(path)).read()) == 3


def test_images_that_stay_in_their_file_have_the_same_digest(demonstrations, tmp_path, monkeypatch):
    path = robomimic.write(tmp_path / "demos.hdf5", demonstrations, env_args={})
    held = store(tmp_path / "store.hdf5", robomimic.read(path))
    monkeypatch.setattr(robomimic, "IMAGES_IN_MEMORY", 0)
    assert store(tmp_path / "store.hdf5", robomimic.read(path)).digest == held.digest


def test_what_was_finished_is_not_encoded_again(demonstrations, tmp_path):
    path = tmp_path / "store.hdf5"
    with pytest.raises(KeyboardInterrupt):
        list(store(path, demonstrations, Encoder(fails_at=2)).write())
    assert not path.exists()
    encode = Encoder()
    made = store(path, demonstrations, encode)
    assert list(made.write()) == [1, 2, 3]
    assert encode.calls == 1
    list(store(tmp_path / "unbroken.hdf5", demonstrations).write())
    unbroken = store(tmp_path / "unbroken.hdf5", demonstrations).read()
    for got, expected in zip(made.read(), unbroken, strict=True):
        np.testing.assert_array_equal(got.observations[EMBEDDING], expected.observations[EMBEDDING])


def test_parts_of_another_encoder_are_not_taken(demonstrations, tmp_path):
    path = tmp_path / "store.hdf5"
    with pytest.raises(KeyboardInterrupt):
        list(store(path, demonstrations, Encoder(fails_at=2), encoder="before").write())
    encode = Encoder()
    list(store(path, demonstrations, encode).write())
    assert encode.calls == 3


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", "one row"])
def test_a_damaged_part_is_written_again(demonstrations, tmp_path, damage):
    made = store(tmp_path / "store.hdf5", demonstrations)
    writing = made.write()
    next(writing)
    (part,) = made.parts.iterdir()
    if damage == "one row":
        np.save(part, np.zeros((1, 3), "f4"))
    else:
        part.write_bytes(damage)
    encode = Encoder()
    again = store(made.path, demonstrations, encode)
    list(again.write())
    assert encode.calls == 3
    expected = Encoder()(demonstrations[0].observations).astype("f4")
    np.testing.assert_array_equal(again.read()[0].observations[EMBEDDING], expected)


KILLED = """
import os, signal
import numpy as np
from pathlib import Path
from fastloop.datasets import robomimic
from fastloop.datasets.embeddings import Embeddings

folder = Path(os.environ["FOLDER"])
calls = 0

def encode(frames):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.ones((len(frames["observation.state"]), 3))

demos = robomimic.read(folder / "demos.hdf5")
keys = ("observation.state", "observation.images.top")
list(Embeddings(folder / "store.hdf5", demos, keys, encode, encoder="an encoder").write())
"""


def test_a_killed_writer_leaves_whole_demonstrations(demonstrations, tmp_path):
    path = robomimic.write(tmp_path / "demos.hdf5", demonstrations, env_args={})
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED)], env=os.environ | {"FOLDER": str(tmp_path)}
    )
    assert killed.returncode == -9
    assert not (tmp_path / "store.hdf5").exists()
    encode = Encoder()
    made = store(tmp_path / "store.hdf5", robomimic.read(path), encode)
    assert list(made.write()) == [1, 2, 3]
    assert encode.calls == 1
    assert (made.read()[1].observations[EMBEDDING] == 1).all()


def test_a_full_disk_loses_nothing_that_was_finished(demonstrations, tmp_path, monkeypatch):
    path = tmp_path / "store.hdf5"
    save, saved = np.save, []

    def full(file, array):
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        saved.append(array)
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"No space left.*are safe"):
        list(store(path, demonstrations).write())
    monkeypatch.undo()
    assert [part.suffix for part in path.with_name("store.hdf5.parts").iterdir()] == [".npy"] * 2
    encode = Encoder()
    list(store(path, demonstrations, encode).write())
    assert encode.calls == 1


def test_other_files_are_neither_taken_nor_replaced(demonstrations, tmp_path):
    demos = robomimic.write(tmp_path / "demos.hdf5", demonstrations, env_args={})
    text = tmp_path / "text.hdf5"
    text.write_text("no HDF5")
    for path, message in ((demos, "is of format None"), (text, "no readable HDF5")):
        before = path.read_bytes()
        with pytest.raises(DemonstrationError, match=message):
            store(path, demonstrations)
        assert path.read_bytes() == before


def short(file, group):
    group.create_dataset("embedding", data=np.zeros((4, 3), "f4"))


def elsewhere(file, group):
    np.zeros((5, 3), "f4").tofile(file.filename + ".raw")
    group.create_dataset("embedding", (5, 3), "f4", external=[(file.filename + ".raw", 0, 60)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file, group: None, "damaged"),
        (lambda file, group: group.create_group("embedding"), "an array of numbers"),
        (short, "4 frames for 5"),
        (lambda file, group: group.create_dataset("embedding", (5, 10**9), "f4"), "the file has"),
        (elsewhere, "another file"),
    ],
    ids=["missing", "group", "short", "bomb", "elsewhere"],
)
def test_a_damaged_store_says_so(demonstrations, tmp_path, damage, message):
    made = store(tmp_path / "store.hdf5", demonstrations)
    list(made.write())
    with h5py.File(made.path, "r+") as file:
        del file["data/demo_0/embedding"]
        damage(file, file["data/demo_0"])
    with pytest.raises(DemonstrationError, match=message):
        store(made.path, demonstrations).read()
