"""Rollouts side by side: inside the page while they are small, as relative links beyond that."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fastloop.sims.report.markup import Html, element
from fastloop.sims.summary import RunSummary, Video

__all__ = ["EMBED_LIMIT", "rollouts"]

EMBED_LIMIT = 25_000_000
"""Bytes of video that one page carries inside it."""


def rollouts(summary: RunSummary, folder: Path) -> Html:
    """The section of videos, one group an episode; empty without a video."""
    groups = list(_groups(summary, folder))
    if not groups:
        return Html()
    return element("section", element("h2", "Rollouts"), element("div", *groups, class_="rollouts"))


def _groups(summary: RunSummary, folder: Path) -> Iterator[Html]:
    outcomes = {
        (arm.name, *episode.key): episode.outcome
        for arm in summary.arms
        for episode in arm.episodes
    }
    order = [arm.name for arm in summary.arms]
    by_key: dict[tuple[str, int], list[Html]] = {}
    videos = sorted(summary.videos, key=lambda v: order.index(v.arm) if v.arm in order else -1)
    for video, screen in zip(videos, _players(videos, folder), strict=True):
        outcome = outcomes.get((video.arm, video.task, video.seed), "not run")
        style = {"success": "good", "error": "bad"}.get(outcome, "open")
        caption = element(
            "figcaption", video.arm + " \u00b7 ", element("span", outcome, class_=style)
        )
        figure = element("figure", screen, caption)
        by_key.setdefault((video.task, video.seed), []).append(figure)
    for (task, seed), figures in sorted(by_key.items()):
        play = element("button", "Play together", type="button") if len(figures) > 1 else Html()
        title = element("h3", element("span", f"{task}, seed {seed}"), play)
        yield element("div", title, element("div", *figures, class_="screens"), class_="rollout")


def _players(videos: Iterable[Video], folder: Path) -> Iterator[Html]:
    """A player for each video, or a line that names the file which is not there."""
    embedded = 0
    for video in videos:
        path = folder / video.path
        if not path.is_file():
            yield element("p", f"video not found: {video.path}", class_="soft")
            continue
        size = path.stat().st_size
        if embedded + size <= EMBED_LIMIT:
            embedded += size
            source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
        else:
            source = "./" + quote(Path(os.path.relpath(path, folder)).as_posix())
        yield element(
            "video", src=source, controls=True, muted=True, loop=True, playsinline=True,
            preload="metadata",
        )  # fmt: skip
