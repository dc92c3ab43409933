"""Camera images one by one, as PNG or JPEG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.extras import require

__all__ = ["LARGEST_IMAGE", "MARGIN", "EncodedImages", "decode_image", "encode_image"]

LARGEST_IMAGE = 2**26  # pixels; a made-up size must not take all memory
MARGIN = 128  # pixels by which codecs pad what they decode


class EncodedImages(LazyFrames):
    """PNG or JPEG images that are decoded when they are asked for, uint8 (N, 3, H, W), RGB.

    Args:
        encoded: the bytes of the images at rising places; survives pickling.
        shape: (N, 3, H, W).
        where: they are from, for messages.
    """

    def __init__(
        self,
        encoded: Callable[[NDArray[np.int64]], Sequence[bytes]],
        shape: tuple[int, ...],
        where: str,
    ) -> None:
        super().__init__(shape, np.uint8)
        self.encoded = encoded
        self.where = where

    def read(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images (M, 3, H, W) at rising `places`.

        Raises:
            DatasetError: one is damaged or of another size.
        """
        pictures = self.encoded(places)
        return np.stack([decode_image(data, self.where, self.shape[1:]) for data in pictures])


def decode_image(
    data: bytes, where: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """A PNG or JPEG image as uint8 (3, H, W).

    Args:
        data: the file.
        where: it is from, for messages.
        shape: that it must have.

    Raises:
        DatasetError: it is none, or of another size.
    """
    av = require("av", extra="data")
    name = "png" if data.startswith(b"\x89PNG") else "mjpeg"
    context = av.CodecContext.create(name, "r")
    most = (shape[1] + MARGIN) * (shape[2] + MARGIN) if shape else LARGEST_IMAGE
    context.options = {"max_pixels": str(most)}
    context.thread_count = 1
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)] if data else []
        picture = frames[0].to_ndarray(format="rgb24").transpose(2, 0, 1)
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise DatasetError(
            f"{where}: an image of {len(data)} bytes cannot be decoded ({error})"
        ) from error
    if shape and picture.shape != shape:
        raise DatasetError(f"{where}: an image has shape {picture.shape}, expected {shape}")
    return np.ascontiguousarray(picture)


def encode_image(picture: NDArray[np.uint8]) -> bytes:
    """An image uint8 (3, H, W) as PNG, without loss."""
    av = require("av", extra="data")
    context = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[1:]
    context.pix_fmt, context.time_base = "rgb24", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
