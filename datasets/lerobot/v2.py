"""LeRobotDataset v2.0 and v2.1: a Parquet file and a video for every episode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import EncodedImages
from fastloop.datasets.lerobot.episodes import EpisodeRows, columns
from fastloop.datasets.lerobot.info import Feature, Info, complete, inside
from fastloop.datasets.lerobot.tables import ParquetImages, column, read_lines, read_parquet
from fastloop.datasets.video import VideoFrames

__all__ = ["episodes"]


def episodes(root: Path, info: Info, keys: list[str]) -> Iterator[partial[EpisodeRows]]:
    """What reads the rows of each episode.

    Raises:
        DatasetError: the list of episodes is missing, damaged or names one twice; or, when called,
            an episode cannot be read.
    """
    path = root / "meta/episodes.jsonl"
    found: dict[int, dict[str, Any]] = {}
    for facts in read_lines(path):
        number = facts.get("episode_index")
        if not isinstance(number, int) or number < 0 or number in found:
            raise DatasetError(f"{path} lists episode {number!r} twice, or not by its number")
        found[number] = facts
    complete(info, len(found), path)
    for number, facts in sorted(found.items()):
        yield partial(_rows, root, info, keys, number, facts)


def _rows(
    root: Path, info: Info, keys: list[str], number: int, facts: dict[str, Any]
) -> EpisodeRows:
    where = f"{root}, episode {number}"
    values = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    path = inside(root, info.data_path, **values)
    table = read_parquet(path, columns(info, keys))
    if len(table) != facts.get("length"):
        raise DatasetError(f"{where}: {path} has {len(table)} rows, expected {facts.get('length')}")

    if (column(table, "episode_index", where, ()) != number).any():
        raise DatasetError(f"{where}: {path} holds rows of another episode")

    def pictures(key: str, feature: Feature, stamps: NDArray[np.float64]) -> LazyFrames:
        if feature.dtype == "image":
            shape = (len(stamps), *feature.shape)
            return EncodedImages(ParquetImages(path, key, 0), shape, where)
        return VideoFrames(inside(root, info.video_path, video_key=key, **values), stamps)

    tasks = facts.get("tasks", [])
    if not isinstance(tasks, list):
        raise DatasetError(f"{where}: tasks is {tasks!r:.80}, expected a list")
    return EpisodeRows(where, table, str(tasks[0]) if tasks else "", pictures)
