"""Where the files of a zarr store are: in a folder, or in a zip."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fastloop.datasets.errors import DatasetError, os_errors_are_faults

__all__ = ["Store", "join", "open_store", "read_json"]

METADATA_LIMIT = 2**24


class Store(Protocol):
    """Files under keys with ``/`` between their parts.

    Attributes:
        name: its path, for messages.
    """

    name: str

    def read(self, key: str, limit: int = METADATA_LIMIT) -> bytes | None:
        """The file at `key`, or None; raises `DatasetError` where it is longer than `limit`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file at `key`, or None."""
        ...

    def folders(self, key: str) -> list[str]:
        """Names of the folders right under `key`, sorted."""
        ...

    def sizes(self, key: str) -> dict[str, int]:
        """Bytes of all files below `key`, however deep, by their keys relative to it."""
        ...


@os_errors_are_faults()
def open_store(path: str | Path) -> Store:
    """The store at `path`, a folder or a zip; raises `DatasetError` where it is neither."""
    path = Path(path)
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Zip(path)
    raise DatasetError(f"{path} does not exist; expected a zarr folder or a zip of one")


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """The JSON object at `key`, None where there is no such file."""
    raw = store.read(key)
    if raw is None:
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{store.name}:{key} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{store.name}:{key} is JSON, but no object")
    return value


def join(folder: str, name: str) -> str:
    """The key of `name` in `folder`."""
    return f"{folder}/{name}" if folder else name


class _Folder:
    def __init__(self, root: Path) -> None:
        self.name, self._root = str(root), root

    def size(self, key: str) -> int | None:
        path = self._root / key
        try:
            return path.stat().st_size if path.is_file() else None  # a pipe would never end
        except (OSError, ValueError):
            return None

    def read(self, key: str, limit: int = METADATA_LIMIT) -> bytes | None:
        size = self.size(key)
        return None if size is None else self._read(key, size, limit)

    def _read(self, key: str, size: int, limit: int) -> bytes:
        _check_length(f"{self.name}/{key}", size, limit)
        try:
            with (self._root / key).open("rb") as file:
                return file.read(limit + 1)
        except OSError as error:
            raise DatasetError(f"{self.name}/{key} cannot be read ({error})") from error

    @os_errors_are_faults()
    def folders(self, key: str) -> list[str]:
        return sorted(path.name for path in (self._root / key).iterdir() if path.is_dir())

    @os_errors_are_faults()
    def sizes(self, key: str) -> dict[str, int]:
        top = self._root / key
        found = {}
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    found[path.relative_to(top).as_posix()] = path.stat().st_size
        return found


class _Zip:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        with _unzipping(f"{path} is no readable zip"):
            self._zip = zipfile.ZipFile(path)
        self._files = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}

    def size(self, key: str) -> int | None:
        info = self._files.get(key)
        return None if info is None else info.compress_size

    def read(self, key: str, limit: int = METADATA_LIMIT) -> bytes | None:
        info = self._files.get(key)
        if info is None:
            return None
        where = f"{self.name}:{key}"
        _check_length(where, info.file_size, limit)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(f"{where}: zip method {info.compress_type}; have: store, deflate")
        with _unzipping(f"{where} cannot be unpacked"), self._zip.open(info) as file:
            return file.read(info.file_size)  # asked without a length, it would unpack all there is

    def folders(self, key: str) -> list[str]:
        prefix = join(key, "")
        below = (name[len(prefix) :] for name in self._files if name.startswith(prefix))
        return sorted({name.partition("/")[0] for name in below if "/" in name})

    def sizes(self, key: str) -> dict[str, int]:
        prefix = join(key, "")
        return {
            name[len(prefix) :]: info.compress_size
            for name, info in self._files.items()
            if name.startswith(prefix)
        }


def _check_length(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise DatasetError(f"{where} has {size} bytes; at most {limit} are expected")


@contextmanager
def _unzipping(what: str) -> Iterator[None]:
    """A damaged zip raises nearly anything."""
    try:
        yield
    except DatasetError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, OSError, OverflowError,
        RuntimeError, ValueError,
    ) as error:  # fmt: skip
        raise DatasetError(f"{what} ({error})") from error
