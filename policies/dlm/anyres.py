"""Camera frames as LaViDa's vision tower reads them: a small whole and its enlarged parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.extras import require
from fastloop.policies.vla.images import check_picture

__all__ = ["PINPOINTS", "AnyRes", "best_pinpoint", "unpadded"]

# Width and height, in the order of the released configurations.
PINPOINTS = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
MEAN, STD = 0.5, 0.5  # of SigLIP, in every channel


@dataclass(frozen=True)
class AnyRes:
    """How a picture is cut into views (LLaVA-NeXT's anyres).

    The first view is the whole picture, squeezed into a square. For the others it is scaled, its
    shape kept, until it touches the edges of a pinpoint, padded in black, and cut.

    Attributes:
        side: pixels of a view's side.
        patch: pixels of a patch's side.
        pinpoints: width and height, multiples of `side`, of which the one that wastes least of a
            picture is taken.

    Raises:
        ValueError: for pinpoints of another size, or none.
    """

    side: int = 384
    patch: int = 14
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS

    def __post_init__(self) -> None:
        if not 0 < self.patch <= self.side:
            raise ValueError(f"a view of {self.side} pixels has no patch of {self.patch}")
        edges = [edge for point in self.pinpoints for edge in point]
        if not edges or min(edges) < 1 or any(edge % self.side for edge in edges):
            raise ValueError(
                f"pinpoints are widths and heights that are multiples of {self.side}, got "
                f"{list(self.pinpoints)}"
            )

    @property
    def tokens_a_side(self) -> int:
        """Of a view; half as many as patches, rounded up."""
        return -(-(self.side // self.patch) // 2)

    def cut(self, frames: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of pictures of any sizes.

        Args:
            frames: N pictures (3, H, W) uint8.

        Returns:
            pixels: (views of all, 3, side, side) float32, normalized; of a picture the whole first,
                then its parts row by row.
            grid: (N, 4) int64, rows and columns of parts, height and width of the picture.

        Raises:
            ValueError: as `fastloop.policies.vla.images.check_picture`.
        """
        image = require("PIL.Image", extra="vla")
        views, grid = [torch.zeros(0, 3, self.side, self.side)], []
        for index, frame in enumerate(frames):
            check_picture(index, frame)
            height, width = frame.shape[1:]
            wide, tall = best_pinpoint(height, width, self.pinpoints)
            picture = image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
            padded = image.new("RGB", (wide, tall))
            scaled = picture.resize(_fitted(height, width, wide, tall))
            padded.paste(scaled, ((wide - scaled.width) // 2, (tall - scaled.height) // 2))
            rows, columns = tall // self.side, wide // self.side
            parts = _pixels(padded).unflatten(1, (rows, self.side)).unflatten(3, (columns, -1))
            views += [
                _pixels(picture.resize((self.side, self.side)))[None],
                parts.permute(1, 3, 0, 2, 4).flatten(0, 1),
            ]
            grid.append((rows, columns, height, width))
        return torch.cat(views), torch.tensor(grid, dtype=torch.int64).reshape(-1, 4)

    def tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """How many tokens (N,) pictures take up: the whole's, and those of the parts that are no
        padding, with one more for the end of each line."""
        side, counts = self.tokens_a_side, []
        for rows, columns, height, width in grid.tolist():
            lines, across = unpadded(rows * side, columns * side, height, width)
            counts.append(side**2 + len(lines) * (len(across) + 1))
        return torch.tensor(counts, dtype=torch.int64)


def best_pinpoint(height: int, width: int, pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Width and height that keep most pixels of a picture, and of those the ones that waste least;
    the first where two are as good."""

    def worth(point: tuple[int, int]) -> tuple[int, int]:
        scale = min(point[0] / width, point[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - point[0] * point[1]

    return max(pinpoints, key=worth)


def unpadded(rows: int, columns: int, height: int, width: int) -> tuple[range, range]:
    """Which rows and columns of tokens hold a picture, that was padded in the middle of them."""
    if width / height > columns / rows:
        margin = (rows - int(height * (columns / width))) // 2
        return range(margin, rows - margin), range(columns)
    margin = (columns - int(width * (rows / height))) // 2
    return range(rows), range(margin, columns - margin)


def _fitted(height: int, width: int, wide: int, tall: int) -> tuple[int, int]:
    """Width and height of a picture that touches two edges of a pinpoint."""
    across, down = wide / width, tall / height
    if across < down:
        return wide, min(math.ceil(height * across), tall)
    return min(math.ceil(width * down), wide), tall


def _pixels(picture: Any) -> torch.Tensor:
    """(3, H, W) float32, normalized."""
    colors = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    colors = colors.view(picture.height, picture.width, 3).permute(2, 0, 1)
    return ((colors.double() / 255).float() - MEAN) / STD
