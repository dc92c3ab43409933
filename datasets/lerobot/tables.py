"""Parquet and Arrow files as tables, and their columns as arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.extras import require

__all__ = ["ParquetImages", "column", "read_arrow", "read_lines", "read_parquet", "stored_images"]

ROW_GROUPS = 8  # kept decoded: as many images as the usual batch touches at a time


def read_parquet(path: Path, columns: Iterable[str] | None = None) -> Any:
    """Read a Parquet file as a `pyarrow.Table`.

    Args:
        path: the file.
        columns: what to read; all when None. Columns of nested values are named by their root.

    Raises:
        DatasetError: it does not exist, is damaged, or lacks a column.
    """
    wanted = None if columns is None else list(columns)
    with _errors_named(path), _open(path) as file:
        have = file.schema_arrow.names
        if wanted is not None and (missing := [name for name in wanted if name not in have]):
            raise DatasetError(f"{path} has no {', '.join(missing)}; its columns are {have}")
        table = file.read(wanted, use_threads=False)
        table.validate(full=True)
        return table


def read_arrow(path: Path) -> Any:
    """Read an Arrow stream as a `pyarrow.Table`.

    Raises:
        DatasetError: it does not exist or is damaged.
    """
    pa = require("pyarrow", extra="data")
    _check_file(path)
    with _errors_named(path), pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
        table.validate(full=True)
        return table


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Raises:
        DatasetError: naming the line that is none.
    """
    found: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                facts = json.loads(line)
                if not isinstance(facts, dict):
                    raise ValueError(f"line {number} is no object")
                found.append(facts)
    except (OSError, RecursionError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    return found


def column(table: Any, name: str, where: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """A column of numbers, (N, *shape).

    Args:
        table: of `pyarrow`.
        name: of the column, whose rows may be lists of lists.
        where: it is from, for messages.
        shape: of a row; a row of one number may stand for (1,). By default as it is.

    Raises:
        DatasetError: it is missing, holds no numbers or gaps, or its rows are of another shape.
    """
    pa, compute = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")
    if name not in table.column_names:
        raise DatasetError(f"{where} has no column {name!r}; it has {table.column_names}")
    with _errors_named(where):
        values = table.column(name).combine_chunks()
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        found: tuple[int, ...] = (len(values),)
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or (
            pa.types.is_fixed_size_list(values.type)
        ):  # fmt: skip
            lengths = compute.list_value_length(values).unique().to_pylist()
            if len(lengths) > 1 or None in lengths:
                raise DatasetError(f"{where}: the rows of {name!r} differ in length")
            found += (lengths[0] if lengths else 0,)
            values = values.flatten()
        if values.null_count:
            raise DatasetError(f"{where}: {name!r} has {values.null_count} gaps")
        array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
            raise DatasetError(f"{where}: {name!r} holds {values.type}, expected numbers")
        if shape is not None and math.prod(found[1:]) != math.prod(shape):
            raise DatasetError(
                f"{where}: a row of {name!r} has shape {found[1:]}, expected {shape}"
            )
        return array.reshape(found if shape is None else (len(table), *shape))


class ParquetImages:
    """The encoded images of a stretch of a Parquet column of ``{bytes, path}``.

    Args:
        path: the file, read a group of rows at a time.
        name: of the column.
        first: row of the first image.
    """

    def __init__(self, path: Path, name: str, first: int) -> None:
        self.path = path
        self.name = name
        self.first = first

    def __call__(self, places: NDArray[np.int64]) -> list[bytes]:
        """The bytes of the images at `places`, counted from the first.

        Raises:
            DatasetError: the file is damaged, or holds no images there.
        """
        with _errors_named(self.path):
            ends = _row_groups(self.path)
            rows = places + self.first
            groups = np.searchsorted(ends, rows, side="right")
            found: list[bytes] = []
            for group in np.unique(groups):
                start = int(ends[group - 1]) if group else 0
                images = _row_group(self.path, self.name, int(group))
                found += stored_images(images, rows[groups == group] - start, str(self.path))
            return found


def stored_images(images: Any, places: NDArray[np.int64], where: str) -> list[bytes]:
    """The bytes of the images at `places` of an array of ``{bytes, path}``.

    Raises:
        DatasetError: one is not inside the array.
    """
    found: Sequence[Any] = images.take(require("pyarrow", extra="data").array(places)).to_pylist()
    if not all(isinstance(image, dict) and image.get("bytes") for image in found):
        raise DatasetError(f"{where} holds the paths of images where their bytes are expected")
    return [image["bytes"] for image in found]


@lru_cache(maxsize=64)
def _row_groups(path: Path) -> NDArray[np.int64]:
    with _open(path) as file:
        groups = range(file.metadata.num_row_groups)
        return np.cumsum([file.metadata.row_group(group).num_rows for group in groups])


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(path: Path, name: str, group: int) -> Any:
    with _open(path) as file:
        return file.read_row_group(group, [name], use_threads=False).column(name).combine_chunks()


def _open(path: Path) -> Any:
    _check_file(path)
    file = require("pyarrow.parquet", extra="data").ParquetFile(path)
    # Every row has a stamp of its own, of a byte and more; a made-up count would take all memory.
    if file.metadata.num_rows > path.stat().st_size:
        rows, size = file.metadata.num_rows, path.stat().st_size
        file.close()
        raise DatasetError(f"{path} says that it has {rows} rows in {size} bytes")
    return file


@os_errors_are_faults()
def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would never end
        raise DatasetError(f"{path} does not exist, or is no file")


@contextmanager
def _errors_named(where: str | Path) -> Iterator[None]:
    """What Arrow finds in a damaged file becomes a fault of that file."""
    pa = require("pyarrow", extra="data")
    try:
        yield
    except DatasetError:
        raise
    except (
        pa.ArrowException, AttributeError, IndexError, KeyError, MemoryError, OSError,
        OverflowError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise DatasetError(f"{where} cannot be read: {error}") from error
