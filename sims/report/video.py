"""Rollout videos inside the page while they are small, as relative links beyond that."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fastloop.sims.report.markup import Html, element
from fastloop.sims.summary import Video

__all__ = ["EMBED_LIMIT", "screens"]

EMBED_LIMIT = 25_000_000
"""Bytes of video that one page carries inside it."""


def screens(videos: Iterable[Video], folder: Path, limit: int = EMBED_LIMIT) -> Iterator[Html]:
    """A player for each video, or a line that names the file which is not there."""
    embedded = 0
    for video in videos:
        path = folder / video.path
        if not path.is_file():
            yield element("p", f"video not found: {video.path}", class_="soft")
            continue
        size = path.stat().st_size
        if embedded + size <= limit:
            embedded += size
            source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
        else:
            source = "./" + quote(Path(os.path.relpath(path, folder)).as_posix())
        yield element(
            "video", src=source, controls=True, muted=True, loop=True, playsinline=True,
            preload="metadata",
        )  # fmt: skip
