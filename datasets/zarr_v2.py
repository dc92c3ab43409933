"""Zarr stores of format 2, read a piece at a time.

Follows the zarr storage specification, version 2: a ``.zgroup`` or ``.zarray`` file of JSON for
each node and one file for each chunk, in a folder or a zip. Structured types with sub-array fields
are read, which zarr 3 does not do.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import zarr_codecs, zarr_stores
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.numpy_files import check_text

__all__ = ["Array", "Group", "open", "open_array"]

# What an array may take is bound to what is stored of it, so that a few bytes cannot ask for all
# memory: a Blosc block of 256 KiB of zeros takes 40 bytes, which is the densest that is written.
FREE = 2**28
DENSEST = 2**13

_CHUNK = re.compile(r"0|[1-9][0-9]{0,17}")


def open(path: str | Path) -> Group:
    """Open a store for reading.

    Args:
        path: a folder, or a ``.zip`` of one.

    Raises:
        DatasetError: where it is missing, no group of zarr format 2, or no zip.
    """
    return Group(zarr_stores.open_store(path), "")


def open_array(path: str | Path) -> Array:
    """Open a store that is one array; raises as `open`."""
    return Array(zarr_stores.open_store(path), "")


class Group:
    """A folder of arrays and groups: ``group["data/state"]``.

    Attributes:
        attrs: what its writer noted of it.

    Raises:
        DatasetError: for a name that it does not hold, saying which it does.
    """

    def __init__(self, store: zarr_stores.Store, path: str) -> None:
        self._store, self._path = store, path
        where = f"{store.name}:{path}"
        marker = zarr_stores.read_json(store, zarr_stores.join(path, ".zgroup"))
        if marker is None:
            newer = store.read(zarr_stores.join(path, "zarr.json")) is not None
            raise DatasetError(
                f"{where} is a store of zarr format 3; write it again with zarr_format=2"
                if newer
                else f"{where} has no .zgroup: not a group of zarr format 2; it holds "
                f"{store.folders(path)}"
            )
        _check_format(marker, where)
        self.attrs = zarr_stores.read_json(store, zarr_stores.join(path, ".zattrs")) or {}

    def __iter__(self) -> Iterator[str]:
        for name in self._store.folders(self._path):
            if self._marker(name) is not None:
                yield name

    def __contains__(self, name: str) -> bool:
        return self._marker(name) is not None

    def __getitem__(self, name: str) -> Group | Array:
        marker = self._marker(name)
        if marker is None:
            raise DatasetError(
                f"{self._store.name}:{self._path} holds no {name!r}; it holds {list(self)}"
            )
        kind = Array if marker == ".zarray" else Group
        return kind(self._store, zarr_stores.join(self._path, name))

    def array(self, name: str) -> Array:
        """The array `name`; raises `DatasetError` where there is none."""
        if isinstance(found := self[name], Array):
            return found
        raise DatasetError(f"{self._store.name}:{self._path}: {name!r} is a group, not an array")

    def group(self, name: str) -> Group:
        """The group `name`; raises `DatasetError` where there is none."""
        if isinstance(found := self[name], Group):
            return found
        raise DatasetError(f"{self._store.name}:{self._path}: {name!r} is an array, not a group")

    def _marker(self, name: str) -> str | None:
        if any(part in ("", ".", "..") for part in name.split("/")):
            return None
        folder = zarr_stores.join(self._path, name)
        for marker in (".zarray", ".zgroup"):
            if self._store.size(zarr_stores.join(folder, marker)) is not None:
                return marker
        return None


class Array:
    """An array on the disk; ``array[5]``, ``array[a:b]`` and ``array[:]`` read rows.

    Only the chunks that hold the rows are read. A chunk that is not stored is full of `fill`.

    Attributes:
        shape, chunks: of the array and of one chunk.
        dtype: never of Python objects.
        fill: () the value where nothing is stored.
        attrs: what its writer noted of it.

    Raises:
        DatasetError: where it is damaged, larger than what is stored can account for, or of an
            encoding that is not read.
    """

    def __init__(self, store: zarr_stores.Store, path: str) -> None:
        self._store, self._path = store, path
        where = self._where = f"{store.name}:{path}"
        header = zarr_stores.read_json(store, zarr_stores.join(path, ".zarray"))
        if header is None:
            raise DatasetError(f"{where} has no .zarray: not an array of zarr format 2")
        _check_format(header, where)
        self.shape = _lengths(header, "shape", 0, where)
        self.chunks = _lengths(header, "chunks", 1, where)
        self.dtype = zarr_codecs.read_dtype(header.get("dtype"), where)
        self.fill = zarr_codecs.read_fill(header.get("fill_value"), self.dtype, where)
        self._order = header.get("order")
        self._separator = header.get("dimension_separator", ".")
        self._compressor = header.get("compressor")
        zarr_codecs.check_compressor(self._compressor, where)
        if len(self.chunks) != len(self.shape):
            raise DatasetError(f"{where}: chunks {self.chunks} do not fit shape {self.shape}")
        if self._order not in ("C", "F") or self._separator not in (".", "/"):
            raise DatasetError(
                f"{where}: order {self._order!r} and dimension_separator {self._separator!r}; "
                "expected C or F, and . or /"
            )
        if filters := header.get("filters"):
            raise DatasetError(f"{where}: filters {str(filters)[:80]} are not read; have: none")
        self.attrs = zarr_stores.read_json(store, zarr_stores.join(path, ".zattrs")) or {}

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __getitem__(self, key: int | slice | EllipsisType) -> NDArray[Any]:
        if key is Ellipsis or not self.shape:
            return self._read(0, self.shape[0] if self.shape else 1)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"rows are read one after the other, not with a step of {step}")
            return self._read(start, max(start, stop))
        row = operator.index(key)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of an array of {len(self)}")
        row %= len(self)
        rows: NDArray[Any] = self._read(row, row + 1)[0]
        return rows

    @cached_property
    def _stored(self) -> dict[tuple[int, ...], tuple[str, int]]:
        """Chunk index to the key of its file and the file's size."""
        stored = {}
        for name, size in self._store.sizes(self._path).items():
            parts = name.split(self._separator)
            if len(parts) == max(self.ndim, 1) and all(map(_CHUNK.fullmatch, parts)):
                index = tuple(map(int, parts)) if self.shape else ()
                stored[index] = (zarr_stores.join(self._path, name), size)
        return stored

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`; the one value of an array without axes."""
        first = (start,) + (0,) * (self.ndim - 1) if self.shape else ()
        last = (stop, *self.shape[1:]) if self.shape else ()
        size = [b - a for a, b in zip(first, last, strict=True)]
        self._check_size(size, sum(size for _, size in self._stored.values()), "asked for")
        result = np.empty(size, self.dtype)
        result[...] = self.fill
        if not result.size:
            return result
        axes = list(zip(first, last, self.chunks, strict=True))
        for index in self._needed([range(a // c, -(-b // c)) for a, b, c in axes]):
            source, target = [], []
            for chunk, (a, b, length) in zip(index, axes, strict=True):
                low, high = max(chunk * length, a), min((chunk + 1) * length, b)
                source.append(slice(low - chunk * length, high - chunk * length))
                target.append(slice(low - a, high - a))
            result[tuple(target)] = self._chunk(*self._stored[index])[tuple(source)]
        return result

    def _needed(self, ranges: list[range]) -> Iterator[tuple[int, ...]]:
        """The stored chunks within `ranges`, looked for on the shorter of the two ways."""
        if math.prod(map(len, ranges)) < len(self._stored):
            yield from (index for index in itertools.product(*ranges) if index in self._stored)
        else:
            for index in self._stored:
                if all(chunk in wanted for chunk, wanted in zip(index, ranges, strict=True)):
                    yield index

    def _chunk(self, key: str, size: int) -> NDArray[Any]:
        where = f"{self._store.name}:{key}"
        nbytes = self._check_size(self.chunks, size, "chunk of")
        data = self._store.read(key, limit=2 * nbytes + 4096)
        if data is None:
            raise DatasetError(f"{where} has vanished")
        decoded = zarr_codecs.decode(data, self._compressor, nbytes, where)
        chunk = np.frombuffer(decoded, self.dtype).reshape(self.chunks, order=self._order)
        check_text(chunk, where)
        return chunk

    def _check_size(self, shape: Iterable[int], stored: int, what: str) -> int:
        nbytes = math.prod(shape) * self.dtype.itemsize
        if nbytes > FREE + DENSEST * stored:
            raise DatasetError(
                f"{self._where}: {what} {tuple(shape)} of {self.dtype.itemsize} bytes each; "
                f"{stored} stored bytes cannot hold that"
            )
        return nbytes


def _check_format(header: dict[str, Any], where: str) -> None:
    if header.get("zarr_format") != 2:
        raise DatasetError(f"{where}: zarr_format {header.get('zarr_format')!r}; expected 2")


def _lengths(header: dict[str, Any], key: str, least: int, where: str) -> tuple[int, ...]:
    given = header.get(key)
    if (
        not isinstance(given, list)
        or len(given) > 32
        or any(type(length) is not int or not least <= length < 2**62 for length in given)
        or math.prod(filter(None, given)) >= 2**62
    ):
        raise DatasetError(f"{where}: {key} {str(given)[:80]}; expected up to 32 lengths")
    return tuple(given)
