"""Rollouts as mp4 files, with what the policy was doing written above the scene."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.summary import Outcome

__all__ = ["Filming", "Recorder"]

Which = Literal["none", "first-k", "failures", "all"]
MIN_WIDTH = 256
ENCODERS = ("imageio_ffmpeg", "cv2")
LINE = 16  # pixels of one caption line
COLORS = {"success": (120, 230, 120), "failure": (255, 140, 120)}


@dataclass(frozen=True)
class Filming:
    """Which episodes leave a video.

    Attributes:
        which: ``none``, ``first-k`` of the work list, ``failures`` (all but successes) or ``all``.
        k: for ``first-k``.

    Raises:
        ValueError: for another choice.
        MissingExtraError: when episodes are to be filmed and nothing can encode them.
    """

    which: Which = "none"
    k: int = 3

    def __post_init__(self) -> None:
        if self.which not in get_args(Which):
            choices = ", ".join(get_args(Which))
            raise ValueError(f"unknown choice of videos {self.which!r}; have: {choices}")
        if self.which != "none":  # else every filmed episode would break, minutes later
            for package in ENCODERS:
                require(package, extra="report")

    def films(self, index: int) -> bool:
        """Whether the episode at place `index` of the work list has to be filmed."""
        return self.which in ("all", "failures") or (self.which == "first-k" and index < self.k)

    def keeps(self, outcome: Outcome) -> bool:
        """Whether the film of an episode that ended so stays."""
        return self.which != "failures" or outcome != "success"


class Recorder:
    """Encodes one episode (H.264, yuv420p) while it runs; frames are never kept in memory.

    Args:
        path: where the finished video will be; until then it has another name beside it.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._partial = path.with_suffix(".part.mp4")
        self._encoder: Generator[None, bytes, None] | None = None
        self._last: NDArray[np.uint8] | None = None

    def frame(self, image: NDArray[np.uint8], caption: str, outcome: Outcome | None = None) -> None:
        """Add the scene (H, W, 3), captioned, and the outcome once there is one."""
        picture = compose(image, caption, outcome)
        if self._encoder is None:
            self._encoder = self._start(picture.shape[1], picture.shape[0])
        self._encoder.send(picture.tobytes())
        self._last = picture

    def close(self, *, keep: bool) -> None:
        """Hold the last frame for half a second and finish the file, or delete it."""
        if self._encoder is None or self._last is None:
            return
        for _ in range(round(self.fps / 2)):
            self._encoder.send(self._last.tobytes())
        self._encoder.close()
        self._encoder = None
        if keep:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink()

    def _start(self, width: int, height: int) -> Generator[None, bytes, None]:
        ffmpeg = require("imageio_ffmpeg", extra="report")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        encoder: Generator[None, bytes, None] = ffmpeg.write_frames(
            str(self._partial),
            (width, height),
            fps=self.fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=["-threads", "1"],
        )
        encoder.send(None)  # type: ignore[arg-type]
        return encoder


def compose(
    image: NDArray[np.uint8], caption: str, outcome: Outcome | None = None
) -> NDArray[np.uint8]:
    """The scene with its caption in a band above.

    Args:
        image: (H, W, 3).
        caption: one or more lines.
        outcome: added to the first line, and colors the caption, once the episode has ended.

    Returns:
        (H', W', 3) with even sides; small scenes are enlarged by a whole number.
    """
    cv2 = require("cv2", extra="report")
    factor = -(-MIN_WIDTH // image.shape[1])
    scene = image.repeat(factor, 0).repeat(factor, 1)
    scene = np.pad(scene, ((0, scene.shape[0] % 2), (0, scene.shape[1] % 2), (0, 0)), "edge")
    lines = caption.splitlines()
    if outcome:
        lines[0] += f"  {outcome}"
    band = np.full((LINE * len(lines) + 4, scene.shape[1], 3), 24, np.uint8)
    color = COLORS.get(outcome or "", (235, 235, 235))
    for row, line in enumerate(lines, start=1):
        place = (4, LINE * row - 3)
        cv2.putText(band, line, place, cv2.FONT_HERSHEY_PLAIN, 0.85, color, 1, cv2.LINE_AA)
    return np.concatenate([band, scene])
