"""Camera frames as a vision tower reads them: patches of a size that keeps the aspect ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fastloop.extras import require

__all__ = ["PatchConfig", "Pictures", "check_picture", "patches", "resized_shape"]

# Of CLIP's training pictures, a channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NARROWEST = 200  # longest side over shortest


class Pictures(Protocol):
    """How a model's pictures are prepared, and how many tokens they become."""

    def cut(self, frames: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the vision tower is shown of N pictures (3, H, W) uint8, and (N, ...) int64 that
        says of each how it was cut."""
        ...

    def tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """(N,) int64, the tokens that pictures take up that were cut so."""
        ...


@dataclass(frozen=True)
class PatchConfig:
    """How a picture is cut.

    Attributes:
        min_pixels, max_pixels: a picture is resized until its pixels are within these.
        patch: pixels of a patch's side.
        merge: patches of a side that become one token.
        frames: times that a still picture is repeated to look like a film.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2
    frames: int = 2

    def __post_init__(self) -> None:
        numbers = (self.min_pixels, self.max_pixels, self.patch, self.merge, self.frames)
        if min(numbers) < 1 or self.min_pixels > self.max_pixels:
            raise ValueError(
                "min_pixels, max_pixels, patch, merge and frames must be positive and min_pixels "
                f"at most max_pixels, got {numbers}"
            )

    def cut(self, frames: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `patches`."""
        return patches(frames, self)

    def tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """See `Pictures`."""
        return grid.prod(1) // self.merge**2


def patches(
    frames: Sequence[torch.Tensor], config: PatchConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of any sizes as one list of patches, as ``Qwen2VLImageProcessorPil`` makes them.

    Args:
        frames: N pictures (3, H, W) uint8.
        config: of the vision tower.

    Returns:
        pixels: (patches of all, 3 * frames * patch * patch) float32, normalized; the patches that
            become one token stand together.
        grid: (N, 3) int64, frames, rows and columns of patches.

    Raises:
        ValueError: for anything but pictures (3, H, W) uint8, and for strips, over 200 times as
            long as wide.
    """
    image = require("PIL.Image", extra="vla")
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    rows, grids = [], []
    for index, frame in enumerate(frames):
        check_picture(index, frame)
        height, width = resized_shape(frame.shape[1], frame.shape[2], config)
        picture = image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
        resized = picture.resize((width, height), resample=image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1)
        normal = ((pixels.double() / 255).float() - mean) / std
        rows.append(_cut(normal, config))
        grids.append((1, height // config.patch, width // config.patch))
    return torch.cat(rows), torch.tensor(grids)


def resized_shape(height: int, width: int, config: PatchConfig) -> tuple[int, int]:
    """Height and width, multiples of a token's side, that a picture is resized to.

    The nearest multiples, or where their pixels are too many or too few, those of the scaled
    picture that are just few or many enough (never less than one token a side).
    """
    side = config.patch * config.merge
    tall, wide = round(height / side) * side, round(width / side) * side
    if tall * wide > config.max_pixels:
        scale = math.sqrt(height * width / config.max_pixels)
        tall = max(side, math.floor(height / scale / side) * side)
        wide = max(side, math.floor(width / scale / side) * side)
    elif tall * wide < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (height * width))
        tall = math.ceil(height * scale / side) * side
        wide = math.ceil(width * scale / side) * side
    return tall, wide


def _cut(picture: torch.Tensor, config: PatchConfig) -> torch.Tensor:
    """(3, H, W) to (patches, 3 * frames * patch * patch)."""
    side, merge = config.patch, config.merge
    _, height, width = picture.shape
    parts = picture.view(
        3, height // side // merge, merge, side, width // side // merge, merge, side
    )
    parts = parts.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 1, side, side)
    return parts.expand(-1, -1, config.frames, -1, -1).flatten(1)


def check_picture(index: int, frame: torch.Tensor) -> None:
    """Refuse what is no picture.

    Args:
        index: of the frame, to be told.
        frame: should be (3, H, W) uint8.

    Raises:
        ValueError: for anything else, and for strips, over 200 times as long as wide.
    """
    if frame.ndim != 3 or frame.shape[0] != 3 or frame.dtype != torch.uint8 or not frame.numel():
        raise ValueError(
            f"picture {index} is {tuple(frame.shape)} {frame.dtype}, expected (3, height, width) "
            "uint8: color, channels first, 0 to 255"
        )
    height, width = frame.shape[1:]
    if max(height, width) > NARROWEST * min(height, width):
        raise ValueError(
            f"picture {index} is {height} x {width} pixels, over {NARROWEST} times as long as wide"
        )
