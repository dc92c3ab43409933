"""Moments of recorded drives: read one by one, and with left and right changed."""

import numpy as np
import pytest

from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration, DemonstrationError
from fastloop.datasets.moments import Moments, swapped

CAMERAS = ("front_left", "front", "front_right")
PICTURES = [f"observation.images.{camera}" for camera in CAMERAS]
KEYS = ["observation.ego_states", "observation.intent", "observation.neighbors", *PICTURES]


def drive(frames, seed):
    rng = np.random.default_rng(seed)
    seen = {
        "observation.ego_states": rng.normal(size=(frames, 16, 6)).astype(np.float32),
        "observation.intent": rng.integers(0, 4, frames),
        "observation.neighbors": rng.normal(size=(frames, 32, 10)).astype(np.float32),
    }
    seen |= {key: rng.integers(0, 256, (frames, 3, 6, 8), dtype=np.uint8) for key in PICTURES}
    plans = rng.normal(size=(frames, 41)).astype(np.float32)
    plans[:, 0] = 0
    return Demonstration(seen, plans, seed=seed)


@pytest.fixture
def path(tmp_path):
    made = [drive(frames, seed) for seed, frames in enumerate((5, 4))]
    return robomimic.write(tmp_path / "drives.hdf5", made, env_args={})


@pytest.fixture
def stored(path, monkeypatch):
    """The drives with pictures that stay in the file, and the places that are read there."""
    monkeypatch.setattr(robomimic, "IMAGES_IN_MEMORY", 1)
    places = []
    read = robomimic.StoredFrames.read

    def watched(self, wanted):
        places.append((self.name, wanted.tolist()))
        return read(self, wanted)

    monkeypatch.setattr(robomimic.StoredFrames, "read", watched)
    return robomimic.read(path, KEYS), places


def test_a_moment_is_what_was_recorded(stored):
    moments = Moments(stored[0], KEYS)
    assert len(moments) == 9
    for place, (seed, frame) in enumerate([(0, f) for f in range(5)] + [(1, f) for f in range(4)]):
        recorded = drive(5 - seed, seed)
        seen, plan = moments[place]
        assert set(seen) == set(KEYS)
        for key in KEYS:
            np.testing.assert_array_equal(seen[key], recorded.observations[key][frame])
        assert all(seen[key].dtype == np.uint8 for key in PICTURES)
        np.testing.assert_array_equal(plan, recorded.actions[frame, 1:].reshape(20, 2))
    with pytest.raises(IndexError):
        moments[9]


def test_pictures_are_read_when_their_moment_is_asked_for(stored):
    demonstrations, places = stored
    moments = Moments(demonstrations, KEYS, mirror=True)
    assert not places
    moments[9 + 6]  # the second frame of the second drive
    assert sorted(places) == [(f"/data/demo_1/obs/{key}", [1]) for key in sorted(PICTURES)]


def test_mirroring_twice_is_nothing(stored):
    moments = Moments(stored[0], KEYS, mirror=True)
    seen, plan = moments[2]
    turned, other = moments[9 + 2]
    np.testing.assert_array_equal(other, plan * [1, -1])
    assert int(turned["observation.intent"]) == [0, 1, 3, 2][int(seen["observation.intent"])]
    np.testing.assert_array_equal(
        turned["observation.ego_states"], seen["observation.ego_states"] * [1, -1, 1, -1, 1, -1]
    )
    left, front, right = PICTURES
    for ours, theirs in ((left, right), (front, front), (right, left)):
        np.testing.assert_array_equal(turned[ours], seen[theirs][..., ::-1])
        assert swapped(ours) == theirs
    back = {key: np.stack([value] * 5) for key, value in turned.items()}
    flat = np.concatenate([[0], other.ravel()]).astype(np.float32)
    again, way = Moments([Demonstration(back, np.stack([flat] * 5))], KEYS, mirror=True)[5]
    np.testing.assert_array_equal(way, plan)
    for key in KEYS:
        np.testing.assert_array_equal(again[key], seen[key])


def test_what_cannot_be_mirrored_is_refused(stored):
    lonely = [key for key in KEYS if "right" not in key]
    with pytest.raises(ValueError, match=r"images.front_right, which is not among"):
        Moments(stored[0], lonely, mirror=True)
    strange = Demonstration({"observation.speed": np.zeros((5, 1))}, np.zeros((5, 41), np.float32))
    with pytest.raises(ValueError, match=r"and not \['observation.speed'\]"):
        Moments([strange], ["observation.speed"], mirror=True)


def test_drives_without_pictures_or_plans_are_refused(path, tmp_path):
    blind = drive(5, 0)
    for key in PICTURES:
        del blind.observations[key]
    file = robomimic.write(tmp_path / "blind.hdf5", [blind], env_args={})
    with pytest.raises(DemonstrationError, match=r"lacks .*front_left.*sim.cameras=\[front_left"):
        robomimic.read(file, KEYS)
    with pytest.raises(ValueError, match="are no plans"):
        Moments([Demonstration({}, np.ones((5, 41), np.float32))], [])


def test_a_picture_is_a_chunk_of_its_own(path):
    import h5py

    with h5py.File(path) as file:
        assert file[f"data/demo_0/obs/{PICTURES[0]}"].chunks == (1, 3, 6, 8)
