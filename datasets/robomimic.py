"""Demonstrations in robomimic's HDF5 layout, read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastloop.datasets.demonstration import (
    Demonstration,
    DemonstrationError,
    Frames,
    LazyFrames,
    is_image,
)
from fastloop.datasets.errors import os_errors_are_faults
from fastloop.datasets.hdf5 import check_within, new_file, numbers

__all__ = ["StoredFrames", "read", "recorded_in", "write"]

IMAGES_IN_MEMORY = 2**30  # bytes
CAMERAS = "; pictures are recorded with sim.cameras=[front_left,front,front_right]"
RAW = (
    "; it is a raw recording of robosuite, with simulator states alone: make its observations with "
    "robomimic's dataset_states_to_obs.py"
)


def write(
    path: str | Path, demonstrations: Iterable[Demonstration], *, env_args: Mapping[str, Any]
) -> Path:
    """Write a file that appears whole or not at all.

    Args:
        path: replaced when it exists.
        demonstrations: become ``data/demo_0``, ``data/demo_1`` and so on.
        env_args: what they were recorded in, kept as JSON (``env_name``, ``env_kwargs``).

    Raises:
        OSError: when the disk is full; an existing file is untouched.
    """
    path = Path(path)
    with new_file(path) as file:
        data = file.create_group("data")
        total = 0
        for index, demonstration in enumerate(demonstrations):
            _write_one(data.create_group(f"demo_{index}"), demonstration)
            total += len(demonstration)
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(dict(env_args))
    return path


def recorded_in(path: str | Path) -> str:
    """The simulator of ours that a readable file was recorded in; empty for any other file."""
    with h5py.File(path, "r") as file:
        text = file["data"].attrs.get("env_args", "")
    try:
        told = json.loads(text)
    except ValueError:
        return ""
    ours = isinstance(told, dict) and told.get("type") == "fastloop"
    return str(told.get("env_name", "")) if ours else ""


@os_errors_are_faults()
def read(
    path: str | Path | Sequence[str | Path],
    keys: Iterable[str] | None = None,
    *,
    mask: str | None = None,
    rows: Mapping[str, int] | None = None,
) -> list[Demonstration]:
    """Read demonstrations.

    Numbers are in memory. Images are too, unless those of the file would take more than
    `IMAGES_IN_MEMORY`: then they are read when they are asked for.

    Args:
        path: of the HDF5 file, or of several, whose demonstrations follow each other.
        keys: observations to read; all when None.
        mask: name under ``mask/`` of a subset, for instance ``train``.
        rows: observation to how many of its frames' first rows are read, where not all are.

    Raises:
        DemonstrationError: saying what was expected and what the file holds; also where parts of it
            are links to other files.
    """
    keys = None if keys is None else list(keys)
    if not isinstance(path, str | Path):
        return [one for each in path for one in read(each, keys, mask=mask, rows=rows)]
    path = Path(path)
    if not path.exists():
        raise DemonstrationError(
            f"{path} does not exist; record demonstrations with `fastloop record out={path}`"
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DemonstrationError(f"{path} is no readable HDF5 file ({error})") from error
    with file:
        try:
            return _read_all(file, keys, mask, path, rows or {})
        except DemonstrationError:
            raise
        except (
            AttributeError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            raise DemonstrationError(f"{path} is damaged ({error})") from error


def _read_all(
    file: h5py.File,
    keys: list[str] | None,
    mask: str | None,
    path: Path,
    rows: Mapping[str, int],
) -> list[Demonstration]:
    if not isinstance(file.get("data"), h5py.Group):
        raise DemonstrationError(
            f"{path} holds {sorted(file)}; a robomimic file holds its episodes under 'data'"
        )
    groups = {name: file["data"][name] for name in _names(file, mask, path)}
    lazy = sum(_image_bytes(group, keys) for group in groups.values()) > IMAGES_IN_MEMORY
    return [
        _read_one(group, keys, f"{path}:{name}", path if lazy else None, rows)
        for name, group in groups.items()
    ]


class StoredFrames(LazyFrames):
    """Frames that stay in their HDF5 file; it is opened once in every process that reads.

    Args:
        path: of the file.
        name: of the array in it.
        shape, dtype: of the array.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        super().__init__(shape, dtype)
        self.path = path
        self.name = name

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The frames at rising `places`.

        Raises:
            DemonstrationError: the file is gone, damaged or another one.
        """
        try:
            dataset = _open(self.path, os.stat(self.path).st_mtime_ns, os.getpid())[self.name]
            frames: NDArray[Any] = dataset[places]
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise DemonstrationError(f"{self.path} is damaged ({error})") from error
        return frames


@lru_cache(maxsize=8)
def _open(path: Path, written: int, process: int) -> h5py.File:
    """The file as this process has it open; a forked one must not share the place in it."""
    return h5py.File(path, "r")


def _is_picture(dataset: Any) -> bool:
    return isinstance(dataset, h5py.Dataset) and dataset.ndim == 4 and dataset.dtype == np.uint8


def _image_bytes(group: Any, keys: list[str] | None) -> int:
    """How much memory the images of an episode would take."""
    seen = group.get("obs") if isinstance(group, h5py.Group) else None
    if not isinstance(seen, h5py.Group):
        return 0
    chosen = [seen.get(key) for key in (seen if keys is None else keys)]
    return sum(dataset.nbytes for dataset in chosen if _is_picture(dataset))


def _names(file: h5py.File, mask: str | None, path: Path) -> list[str]:
    """The episodes ``demo_<n>`` in the order of their numbers, those of `mask` only."""
    names = list(file["data"])
    if strange := [name for name in names if not name.rpartition("_")[2].isdecimal()]:
        raise DemonstrationError(f"{path} holds data/{strange[0]}; expected data/demo_<number>")
    names.sort(key=lambda name: int(name.rpartition("_")[2]))
    if mask is None:
        return names
    if f"mask/{mask}" not in file:
        have = ", ".join(file.get("mask", {})) or "none"
        raise DemonstrationError(f"{path} has no mask {mask!r}; have: {have}")
    chosen = {name.decode() for name in file[f"mask/{mask}"][:]}
    return [name for name in names if name in chosen]


def _write_one(group: h5py.Group, demonstration: Demonstration) -> None:
    for key, value in demonstration.observations.items():
        chunks = (1, *value.shape[1:]) if is_image(value) else True  # read one by one
        group.create_dataset(
            f"obs/{key}", data=value, chunks=chunks, compression="gzip", compression_opts=1
        )
    group.create_dataset("actions", data=demonstration.actions)
    for key in ("rewards", "states"):
        value = getattr(demonstration, key)
        if value is not None:
            group.create_dataset(key, data=value)
    ends = np.zeros(len(demonstration), dtype=np.int64)
    ends[-1:] = 1
    group.create_dataset("dones", data=ends)
    group.attrs["num_samples"] = len(demonstration)
    group.attrs["success"] = demonstration.success
    if demonstration.seed is not None:
        group.attrs["seed"] = demonstration.seed


def _read_one(
    group: h5py.Group,
    keys: list[str] | None,
    where: str,
    lazy: Path | None,
    rows: Mapping[str, int],
) -> Demonstration:
    """The episode of a group; with `lazy`, the path of the file, images stay there."""
    for name in ("obs", "actions"):
        if name not in group:
            raise DemonstrationError(
                f"{where} holds {sorted(group)} and no {name!r}"
                + (RAW if "states" in group and name == "obs" else "")
            )
    if h5py.h5o.get_info(group.id).rc > 1:
        raise DemonstrationError(f"{where} is another episode under a second name")
    wanted = list(group["obs"] if keys is None else keys)
    missing = [key for key in wanted if key not in group["obs"]]
    if missing:
        raise DemonstrationError(
            f"{where} lacks observations {missing}; has {sorted(group['obs'])}"
            + (CAMERAS if any("images" in key for key in missing) else "")
        )
    return Demonstration(
        observations={
            key: _frames(group["obs"][key], where, lazy, rows.get(key)) for key in wanted
        },
        actions=numbers(group["actions"], where).astype(np.float32),
        rewards=numbers(group["rewards"], where).astype(np.float32) if "rewards" in group else None,
        states=numbers(group["states"], where).astype(np.float64) if "states" in group else None,
        seed=int(group.attrs["seed"]) if "seed" in group.attrs else None,
        success=bool(group.attrs.get("success", True)),
    )


def _frames(
    dataset: h5py.Dataset | h5py.Group, where: str, lazy: Path | None, rows: int | None
) -> Frames:
    if not lazy or not _is_picture(dataset):
        return numbers(dataset, where, rows)
    check_within(dataset, where)
    return StoredFrames(lazy, dataset.name, dataset.shape, dataset.dtype)
