"""Frames in a file are indexed like an array; demonstrations whose parts differ are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.demonstration import Demonstration, DemonstrationError, LazyFrames, is_image
from fastloop.datasets.errors import DatasetError

FRAMES = np.arange(7 * 2).reshape(7, 2).astype(np.int16)


class Asked(LazyFrames):
    """Frames that check what they are asked for."""

    def __init__(self) -> None:
        super().__init__(FRAMES.shape, FRAMES.dtype)

    def read(self, places):
        assert len(places)
        assert (np.diff(places) > 0).all()
        assert 0 <= places[0] <= places[-1] < len(self)
        return FRAMES[places]


INDICES = st.one_of(
    st.integers(-7, 6),
    st.slices(7),
    st.lists(st.integers(-7, 6), max_size=9).map(lambda places: np.array(places, np.int64)),
    st.lists(st.booleans(), min_size=7, max_size=7).map(np.array),
)


@given(index=INDICES)
def test_they_are_indexed_like_an_array(index):
    found = Asked()[index]
    np.testing.assert_array_equal(found, FRAMES[index])
    assert found.dtype == FRAMES.dtype


def test_windows_of_frames_and_whole_arrays():
    places = np.array([[0, 0, 3], [3, 6, 0]])
    np.testing.assert_array_equal(Asked()[places], FRAMES[places])
    np.testing.assert_array_equal(np.asarray(Asked()), FRAMES)
    assert len(Asked()) == 7
    with pytest.raises(IndexError):
        Asked()[7]


def test_what_is_an_image():
    assert is_image(np.zeros((2, 3, 8, 8), np.uint8))
    assert not is_image(np.zeros((2, 3, 8, 8), np.float32))
    assert not is_image(np.zeros((2, 8, 8, 3), np.uint8))


def test_parts_of_different_length_are_refused():
    actions = np.zeros((2, 1), np.float32)
    assert issubclass(DemonstrationError, DatasetError)
    with pytest.raises(DemonstrationError, match="observation 'x' has 7 frames for 2 actions"):
        Demonstration({"x": Asked()}, actions)
    with pytest.raises(DemonstrationError, match="rewards has 3 frames for 2 actions"):
        Demonstration({}, actions, rewards=np.zeros(3, np.float32))
    with pytest.raises(DemonstrationError, match=r"shape \(N, A\), not \(2,\)"):
        Demonstration({}, np.zeros(2, np.float32))
