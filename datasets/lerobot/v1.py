"""LeRobotDataset v1: one Arrow stream of Hugging Face ``datasets``, a video for every episode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import EncodedImages, decode_image
from fastloop.datasets.lerobot.episodes import EpisodeRows
from fastloop.datasets.lerobot.info import Feature, Info, inside, read_json
from fastloop.datasets.lerobot.tables import column, read_arrow, stored_images
from fastloop.datasets.video import VideoFrames, probe
from fastloop.extras import require

__all__ = ["episodes", "read_info"]


def read_info(root: Path) -> tuple[Info, Any]:
    """The description of the dataset, which is partly in its table; and the table.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    facts = read_json(root / "meta_data/info.json")
    fps = facts.get("fps")
    if not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise DatasetError(f"{root}/meta_data/info.json: fps is {fps!r}")
    pa = require("pyarrow", extra="data")
    state = read_json(root / "train/state.json").get("_data_files")
    try:
        files = [inside(root / "train", file["filename"]) for file in state or ()]
        table = pa.concat_tables([read_arrow(file) for file in files])
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{root}/train/state.json names no tables: {error}") from error
    features = {name: _feature(root, table, name) for name in table.column_names}
    return Info((1, 0), float(fps), features, None, None, 1, None), table


def episodes(root: Path, table: Any) -> Iterator[partial[EpisodeRows]]:
    """What gives the rows of each episode.

    Raises:
        DatasetError: the index of episodes is missing or damaged; or, when called, an episode
            cannot be read.
    """
    path = root / "meta_data/episode_data_index.safetensors"
    try:
        index = load_file(path)
        starts, ends = index["from"].reshape(-1), index["to"].reshape(-1)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if len(starts) != len(ends) or not np.array_equal(starts[1:], ends[:-1]):
        raise DatasetError(f"{path}: its episodes do not follow each other")
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        yield partial(_rows, root, table, number, int(start), int(end))


def _rows(root: Path, table: Any, number: int, start: int, end: int) -> EpisodeRows:
    where = f"{root}, episode {number}"
    if not 0 <= start < end <= len(table):
        raise DatasetError(f"{where} is said to be rows {start} to {end} of {len(table)}")
    rows = table[start:end]

    def pictures(key: str, feature: Feature, stamps: NDArray[np.float64]) -> LazyFrames:
        cells = rows.column(key).combine_chunks()
        if feature.dtype == "image":
            images = partial(stored_images, cells, where=where)
            return EncodedImages(images, (len(stamps), *feature.shape), where)
        paths = cells.field("path").unique().to_pylist()
        if len(paths) != 1:
            raise DatasetError(f"{where}: {key} is in {len(paths)} videos, expected one")
        shown = cells.field("timestamp").to_numpy(zero_copy_only=False).astype(np.float64)
        return VideoFrames(inside(root, paths[0]), shown)

    return EpisodeRows(where, rows, "", pictures)


def _feature(root: Path, table: Any, name: str) -> Feature:
    """What the type of a column says of it, and for images the first of them."""
    pa = require("pyarrow", extra="data")
    kind = table.schema.field(name).type
    if pa.types.is_struct(kind):
        held = {kind.field(i).name for i in range(kind.num_fields)}
        first = table.column(name)[0].as_py() if len(table) else None
        if held == {"path", "timestamp"} and first:
            info = probe(inside(root, first["path"]))
            return Feature("video", (3, info.height, info.width))
        if held == {"bytes", "path"} and first and first["bytes"]:
            return Feature("image", decode_image(first["bytes"], f"{root}: {name}").shape)
        raise DatasetError(f"{root}: {name} holds {kind}, expected numbers, images or videos")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Feature("string", ())
    array = column(table, name, f"{root}/train")
    return Feature(str(array.dtype), array.shape[1:])
