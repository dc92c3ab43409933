"""Recordings at another step: on the lines between annotations, and nowhere else."""

import numpy as np
import pytest

from fastloop.datasets.eth_ucy import split, trajectories
from fastloop.datasets.pedestrians import Recording, at_step


def recording(*walks, step=10):
    """Of walks (pedestrian, frames, positions)."""
    rows = sorted(
        (int(frame), who, *where)
        for who, frames, positions in walks
        for frame, where in zip(frames, positions, strict=True)
    )
    frames, people, x, y = np.array(rows).T
    where = np.stack([x, y], 1)
    return Recording("walks", step, frames.astype(np.int64), people.astype(np.int64), where)


def test_between_annotations_by_hand():
    walks = (1, [3], [(9, 9)]), (3, [10, 20, 30], [(0, 0), (1, 2), (1, 4)])
    found = at_step(recording(*walks), 6)
    assert (found.name, found.step) == ("walks", 6)
    assert found.frames.tolist() == [3, 15, 21, 27], "counted from the first"
    assert found.pedestrians.tolist() == [1, 3, 3, 3]
    np.testing.assert_allclose(found.positions[1:], [(0.5, 1), (1, 2.2), (1, 3.4)])


def test_the_same_step_is_the_same_recording():
    walks = [
        (who, 3 + np.arange(5 * who, 5 * who + 4) * 10, np.full((4, 2), who)) for who in (1, 2, 7)
    ]
    before = recording(*walks)
    after = at_step(before, 10)
    for name in ("frames", "pedestrians", "positions"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_nobody_is_in_a_gap():
    gap = recording((1, [0, 10, 40, 50], [(0, 0), (1, 0), (4, 0), (5, 0)]))
    assert at_step(gap, 5).frames.tolist() == [0, 5, 10, 40, 45, 50]
    single = recording((1, [0, 10], [(0, 0), (1, 0)]), (2, [7], [(5, 5)]))
    assert at_step(single, 6).pedestrians.tolist() == [1, 1], "seen once, between two steps"


def test_frames_and_then_pedestrians():
    found = at_step(recording((9, [0, 10], [(0, 0)] * 2), (2, [0, 10], [(1, 1)] * 2)), 5)
    assert found.frames.tolist() == [0, 0, 5, 5, 10, 10]
    assert found.pedestrians.tolist() == [2, 9] * 3


def test_a_step_is_a_frame_or_more():
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        at_step(recording((1, [0, 10], [(0, 0)] * 2)), 0)


@pytest.mark.parametrize("scene", ["eth", "zara1"])
def test_only_eth_is_read_at_its_own_time(realdata, scene):
    root = realdata / "eth_ucy"
    for part in ("train", "val", "test"):
        usual, true = (split(root, scene, part, eth_step=step) for step in (None, 6))
        for before, after in zip(usual, true, strict=True):
            assert after.step == (6 if before.name == "biwi_eth" else 10)
            assert (after.step == 10) == np.array_equal(before.frames, after.frames)


def test_people_of_eth_stroll_at_its_own_time(realdata):
    data = trajectories(realdata / "eth_ucy", "eth", eth_step=6).test
    assert len(data) > 2000
    steps = np.linalg.norm(np.diff(data.past, axis=1), axis=-1)
    assert 1.2 < np.median(steps[steps > 0.2]) / 0.4 < 1.6  # m/s
