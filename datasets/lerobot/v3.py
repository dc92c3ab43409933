"""LeRobotDataset v3.0: many episodes in a Parquet file and in a video."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import EncodedImages
from fastloop.datasets.lerobot.episodes import EpisodeRows, columns, spans
from fastloop.datasets.lerobot.info import Feature, Info, complete, inside
from fastloop.datasets.lerobot.tables import ParquetImages, read_parquet
from fastloop.datasets.video import VideoFrames

__all__ = ["episodes"]


def episodes(root: Path, info: Info, keys: list[str]) -> Iterator[partial[EpisodeRows]]:
    """What reads the rows of each episode.

    Raises:
        DatasetError: the list of episodes is missing, damaged or names one twice; or, when called,
            an episode cannot be read.
    """

    @lru_cache(maxsize=1)  # episodes come in the order of their files
    def data(path: Path) -> tuple[Any, dict[int, slice]]:
        table = read_parquet(path, columns(info, keys))
        return table, spans(table, str(path))

    videos = [key for key in keys if info.features[key].dtype == "video"]
    listed = _listed(root, videos)
    complete(info, len(listed), root / "meta/episodes")
    for number, facts in sorted(listed.items()):
        yield partial(_rows, root, info, number, facts, data)


def _listed(root: Path, videos: list[str]) -> dict[int, dict[str, Any]]:
    """What ``meta/episodes`` says of each episode."""
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root}/meta/episodes holds no parquet file")
    wanted = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index")]
        wanted.append(f"videos/{key}/from_timestamp")
    found: dict[int, dict[str, Any]] = {}
    for file in files:
        for facts in read_parquet(file, wanted).to_pylist():
            number = facts["episode_index"]
            if not isinstance(number, int) or number in found:
                raise DatasetError(f"{file} lists episode {number!r} twice, or not by its number")
            found[number] = facts
    return found


def _rows(root: Path, info: Info, number: int, facts: dict[str, Any], data: Any) -> EpisodeRows:
    where = f"{root}, episode {number}"
    for name, value in facts.items():
        kinds = list if name == "tasks" else float if name.endswith("timestamp") else int
        if not isinstance(value, kinds):
            raise DatasetError(f"{where}: {name} is {value!r}, expected {kinds.__name__}")
    path = inside(
        root,
        info.data_path,
        chunk_index=facts["data/chunk_index"],
        file_index=facts["data/file_index"],
    )
    table, places = data(path)
    place = places.get(number, slice(0, 0))
    if place.stop - place.start != facts["length"]:
        raise DatasetError(
            f"{where}: {path} has {place.stop - place.start} rows of it, expected {facts['length']}"
        )

    def pictures(key: str, feature: Feature, stamps: NDArray[np.float64]) -> LazyFrames:
        if feature.dtype == "image":
            images = ParquetImages(path, key, place.start)
            return EncodedImages(images, (len(stamps), *feature.shape), where)
        video = inside(
            root,
            info.video_path,
            video_key=key,
            chunk_index=facts[f"videos/{key}/chunk_index"],
            file_index=facts[f"videos/{key}/file_index"],
        )
        return VideoFrames(video, facts[f"videos/{key}/from_timestamp"] + stamps)

    tasks = facts["tasks"] or [""]
    return EpisodeRows(where, table[place], str(tasks[0]), pictures)
