"""Demonstrations in diffusion_policy's zarr layout, read and written.

``data/<key>`` holds the frames of all episodes one after the other, ``meta/episode_ends`` where
each of them ends (int64, cumulative). The Push-T set of that project has, at 10 Hz and in pixels
of a 512 x 512 field: ``state`` (N, 5) pusher x, y, block x, y and angle in rad; ``action`` (N, 2)
where the pusher is to go; ``keypoint`` (N, 9, 2) of the block; ``img`` (N, 96, 96, 3) with values
from 0 to 255; ``n_contacts`` (N, 1). Follows ``common/replay_buffer.py`` of diffusion_policy (Chi
et al. 2023).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import zarr_v2
from fastloop.datasets.demonstration import Demonstration, Frames, LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.extras import require

__all__ = ["read", "write"]

CHUNK_BYTES = 2_000_000
IMAGES = "observation.images."


def read(path: str | Path, keys: Mapping[str, str] | None = None) -> list[Demonstration]:
    """Read demonstrations.

    An observation called ``observation.images.<camera>`` is made uint8 (N, 3, H, W) of (N, H, W, 3)
    values from 0 to 255, all others stay as they are stored. Frames of three axes and more are
    `LazyFrames`.

    Args:
        path: a folder, or a zip of one.
        keys: key in the store to key of the observation, for instance ``{"state":
            "observation.state"}``; all but ``action``, under their own names, when None.

    Raises:
        DatasetError: saying what was expected and what the store holds.
    """
    root = zarr_v2.open(path)
    data, ends = root.group("data"), _ends(root.group("meta").array("episode_ends"), path)
    names = {key: key for key in data if key != "action"} if keys is None else keys
    for key in ("action", *names):
        array = data.array(key)
        if array.ndim == 0 or len(array) != (ends[-1] if ends else 0):
            raise DatasetError(
                f"{path}: data/{key} is of shape {array.shape} for episodes that end at {ends[-1:]}"
            )
        if key != "action" and names[key].startswith(IMAGES):
            _check_images(array, f"{path}: data/{key}")
    actions = data.array("action")
    if actions.ndim != 2 or actions.dtype.kind not in "fiu":
        raise DatasetError(
            f"{path}: action is {actions.dtype} of shape {actions.shape}; expected numbers (N, A)"
        )
    acted = actions[:].astype(np.float32)
    # Read once: a chunk may hold the frames of many episodes.
    held = {key: array[:] for key in names if (array := data.array(key)).ndim < 4}

    def frames(key: str, name: str, start: int, end: int) -> Frames:
        if key in held:
            return held[key][start:end]
        images = name.startswith(IMAGES)
        return _StoredFrames(Path(path), key, data.array(key), start, end, images)

    return [
        Demonstration(
            observations={name: frames(key, name, start, end) for key, name in names.items()},
            actions=acted[start:end],
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _ends(array: zarr_v2.Array, path: str | Path) -> list[int]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: meta/episode_ends is {array.dtype} of shape {array.shape}; expected whole "
            "numbers of shape (episodes,)"
        )
    ends: list[int] = array[:].tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        if start >= end:
            raise DatasetError(
                f"{path}: an episode of meta/episode_ends goes from {start} to {end}"
            )
    return ends


def _check_images(array: zarr_v2.Array, where: str) -> None:
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype.kind not in "fu":
        raise DatasetError(
            f"{where} is {array.dtype} of shape {array.shape}; images are (N, H, W, 3) of 0 to 255"
        )


class _StoredFrames(LazyFrames):
    """Rows `start` to `end` of ``data/<key>``."""

    def __init__(
        self, path: Path, key: str, array: zarr_v2.Array, start: int, end: int, images: bool
    ) -> None:
        height_first = (3, *array.shape[1:3]) if images else array.shape[1:]
        super().__init__((end - start, *height_first), np.uint8 if images else array.dtype)
        self._path, self._key, self._start, self._images = path, key, start, images

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        array = _array(self._path, self._key, os.getpid())
        runs = np.split(places + self._start, np.flatnonzero(np.diff(places) != 1) + 1)
        frames: NDArray[Any] = np.concatenate(
            [array[int(run[0]) : int(run[-1]) + 1] for run in runs]
        )
        if not self._images:
            return frames
        if not ((frames >= 0) & (frames <= 255)).all():
            raise DatasetError(f"{self._path}: data/{self._key} has pixels beyond 0 to 255")
        return np.ascontiguousarray(np.moveaxis(frames, -1, 1)).astype(np.uint8)


@lru_cache(maxsize=16)
def _array(path: Path, key: str, pid: int) -> zarr_v2.Array:
    """Opened once in each process: an open zip cannot be shared with a fork."""
    return zarr_v2.open(path).group("data").array(key)


def write(
    path: str | Path,
    demonstrations: Iterable[Demonstration],
    keys: Mapping[str, str] | None = None,
) -> Path:
    """Write a folder that appears whole or not at all.

    The layout has places for observations and actions only.

    Args:
        path: replaced when it holds a zarr group.
        demonstrations: at least one, with the same observations of the same shape and dtype.
        keys: as in `read`; all observations, under their own names, when None.

    Raises:
        DatasetError: where the demonstrations do not fit together, or something else is at `path`.
        OSError: when the disk is full; what is at `path` is untouched.
    """
    path, demos = Path(path), list(demonstrations)
    if path.exists() and not (path / ".zgroup").is_file():
        raise DatasetError(f"{path} exists and is no zarr group; it is not replaced")
    if not demos or not all(map(len, demos)):
        raise DatasetError(f"nothing to write to {path}: no episode, or one without frames")
    names = {name: name for name in demos[0].observations} if keys is None else dict(keys)
    columns: dict[str, list[Frames]] = {key: _column(demos, key, names[key]) for key in names}
    columns["action"] = [demo.actions for demo in demos]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        whole = Path(beside, "new")
        for folder in (whole, whole / "data", whole / "meta"):
            _write_json(folder / ".zgroup", {"zarr_format": 2})
        for key, frames in columns.items():
            images = names.get(key, "").startswith(IMAGES)
            _write_array(whole / "data" / key, frames, images=images)
        _write_array(whole / "meta" / "episode_ends", [np.cumsum([len(demo) for demo in demos])])
        _replace(path, whole, Path(beside, "old"))
    return path


def _column(demos: list[Demonstration], key: str, name: str) -> list[Frames]:
    """Observation `name` of all episodes, checked to fit in one array called `key`."""
    if not key or key == "action" or "/" in key or key.startswith("."):
        raise DatasetError(f"an observation cannot be stored as {key!r}; give it another key")
    for demo in demos:
        if name not in demo.observations:
            raise DatasetError(f"no observation {name!r}; have: {sorted(demo.observations)}")
    frames = [demo.observations[name] for demo in demos]
    kinds = {(part.dtype, part.shape[1:]) for part in frames}
    if len(kinds) > 1 or frames[0].dtype.kind not in "biuf":
        raise DatasetError(f"observation {name!r} is of {kinds}; expected numbers of one shape")
    return frames


def _write_array(folder: Path, parts: list[Frames], *, images: bool = False) -> None:
    """One array of `parts`, one after the other; `images` are turned to channels last."""
    frame: tuple[int, ...] = parts[0].shape[1:]
    frame = (*frame[1:], frame[0]) if images else frame
    dtype = parts[0].dtype
    rows = max(1, CHUNK_BYTES // max(1, dtype.itemsize * int(np.prod(frame))))
    length = sum(map(len, parts))
    rows = min(rows, length)
    numcodecs = require("numcodecs", extra="data")
    codec = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    header = {
        "zarr_format": 2,
        "shape": [length, *frame],
        "chunks": [rows, *(max(1, size) for size in frame)],
        "dtype": dtype.str,
        "compressor": codec.get_config(),
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    _write_json(folder / ".zarray", header)
    for index, block in enumerate(_blocks(parts, rows)):
        chunk = np.zeros((rows, *frame), dtype)
        chunk[: len(block)] = np.moveaxis(block, 1, -1) if images else block
        if chunk.size:
            name = ".".join(["0"] * len(frame))
            file = folder / f"{index}.{name}".rstrip(".")
            file.write_bytes(codec.encode(chunk))


def _blocks(parts: list[Frames], rows: int) -> Iterator[NDArray[Any]]:
    """The frames of all `parts`, `rows` at a time."""
    rest = np.empty((0, *parts[0].shape[1:]), parts[0].dtype)
    for part in parts:
        for start in range(0, len(part), rows):
            rest = np.concatenate([rest, part[start : start + rows]])
            if len(rest) >= rows:
                yield rest[:rows]
                rest = rest[rows:]
    if len(rest):
        yield rest


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=4))


def _replace(path: Path, new: Path, old: Path) -> None:
    """Put the folder `new` at `path`; what was there goes to `old`, and back if that fails."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
