"""Single images: without loss, of the right size, and files that are damaged."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import EncodedImages, decode_image, encode_image

pytest.importorskip("av")

DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
)  # fmt: skip


def damaged(data: bytes, kind: str, where: float, noise: bytes) -> bytes:
    at = int(where * len(data))
    if kind == "cut":
        return data[:at]
    return data[:at] + noise + data[at + (len(noise) if kind == "flip" else 0) :]


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99)
)  # fmt: skip
def test_images_lose_nothing(height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    np.testing.assert_array_equal(decode_image(encode_image(picture), "here"), picture)


@settings(max_examples=50)
@given(damage=DAMAGE)
def test_a_damaged_image_is_data_or_a_fault(damage):
    picture = np.random.default_rng(0).integers(0, 256, (3, 9, 7), np.uint8)
    with suppress(DatasetError):
        found = decode_image(damaged(encode_image(picture), *damage), "here", picture.shape)
        assert found.shape == picture.shape


def test_images_of_another_size_are_refused():
    encoded = [encode_image(np.zeros((3, *size), np.uint8)) for size in ((4, 6), (6, 4))]
    images = EncodedImages(lambda places: [encoded[i] for i in places], (2, 3, 4, 6), "there")
    assert images[0].shape == (3, 4, 6)
    with pytest.raises(DatasetError, match=r"there: an image has shape \(3, 6, 4\)"):
        images[:]
    huge = bytearray(encoded[0])
    huge[16:24] = bytes([0, 0, 127, 255] * 2)  # says that it is 32767 x 32767
    with pytest.raises(DatasetError, match="there"):
        decode_image(bytes(huge), "there")
