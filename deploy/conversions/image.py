"""Camera images: raw or compressed, to (3, H, W)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from fastloop.deploy.messages import BadMessage
from fastloop.extras import require

__all__ = ["ENCODINGS", "Picture", "compressed", "raw"]

ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
    "8UC3": (3, (2, 1, 0)),  # of OpenCV, which keeps blue first
}
"""Encoding of a raw image: bytes a pixel, and which of them are red, green and blue."""

_LARGEST = 2**26  # pixels; a made-up size must not take all memory


@dataclass(frozen=True)
class Picture:
    """Makes (3, H, W) RGB of an ``Image`` or ``CompressedImage``.

    Attributes:
        size: H and W to scale it to, each axis by itself; None leaves it as it is.
        dtype: ``float32`` in [0, 1], or ``uint8``.
    """

    size: tuple[int, int] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint8"):
            raise ValueError(f"an image is of no dtype {self.dtype!r}; have: float32, uint8")

    def __call__(self, message: Any) -> torch.Tensor:
        """The picture in `message`.

        Raises:
            BadMessage: it is cut off, damaged, empty, or of an encoding that is not known.
        """
        pixels = raw(message) if hasattr(message, "step") else compressed(message)
        if self.size is None or pixels.shape[:2] == self.size:
            image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        else:
            # In bytes: a quarter of the time, and antialiased bytes round to the same picture.
            # Colors of a pixel stay side by side until there are fewer pixels.
            wide = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)[None]
            image = interpolate(wide, self.size, mode="bilinear", antialias=True)[0].contiguous()
        return image if self.dtype == "uint8" else image.to(torch.float32).div_(255)


def raw(message: Any) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an ``Image``.

    Raises:
        BadMessage: its size, encoding and data do not fit together.
    """
    if message.encoding not in ENCODINGS:
        raise BadMessage(f"image encoding {message.encoding!r}; have: {', '.join(ENCODINGS)}")
    width_bytes, order = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if not height or not width:
        raise BadMessage(f"an image of {width} x {height} pixels")
    if step < width * width_bytes or height * step != len(message.data):
        raise BadMessage(
            f"an image of {width} x {height} in {message.encoding} has rows of {step} bytes and "
            f"{len(message.data)} bytes in all; expected {width * width_bytes} or more a row and "
            f"{height * step} in all"
        )
    rows = message.data.reshape(height, step)[:, : width * width_bytes]
    pixels: NDArray[np.uint8] = rows.reshape(height, width, width_bytes)
    return pixels if message.encoding == "rgb8" else pixels[..., list(order)]


def compressed(message: Any) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a ``CompressedImage``, JPEG or PNG.

    Raises:
        BadMessage: it is cut off, damaged, or neither.
    """
    images = require("PIL.Image", extra="ros")
    data = message.data.tobytes()
    try:
        with images.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > _LARGEST:
                raise BadMessage(f"an image of {image.width} x {image.height} pixels is too large")
            return np.asarray(image.convert("RGB"))
    except BadMessage:
        raise
    except Exception as error:  # whatever bytes from elsewhere make the decoders raise
        raise BadMessage(
            f"an image ({message.format!r}) of {len(data)} bytes cannot be decoded: {error}"
        ) from error
