"""The zip file that torch.save writes: a pickle that describes, and records that hold numbers."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.unpickle import (
    DTYPES,
    MAX_PICKLE_BYTES,
    Storage,
    StoredTensor,
    Symbol,
    interpret,
)

__all__ = ["TorchArchive", "open_archive"]

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class TorchArchive:
    """An open torch zip file: its payload as plain data, tensors read on demand.

    Attributes:
        payload: what was saved; tensors as `StoredTensor`, omegaconf objects as `Stub`.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._zip = archive
        pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path} is a zip file without exactly one data.pkl (found {len(pickles)}), so "
                "torch.save did not write it"
            )
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in archive.namelist():
            raise CheckpointError(f"{path} is a TorchScript program, expected a saved payload")
        if self._info("data.pkl").file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: data.pkl is over {MAX_PICKLE_BYTES >> 20} MiB")
        if (
            f"{self._root}byteorder" in archive.namelist()
            and self._record("byteorder") != b"little"
        ):
            raise CheckpointError(f"{path} holds big-endian numbers, expected little-endian")
        self.payload = interpret(self._record("data.pkl"), self._storage)

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """The numbers of one tensor, contiguous, on the CPU in the stored dtype."""
        storage = tensor.storage
        if not math.prod(tensor.shape):
            return torch.empty(tensor.shape, dtype=storage.dtype)
        record = bytearray(self._record(f"data/{storage.key}"))
        data = torch.frombuffer(record, dtype=storage.dtype, count=storage.numel)
        return data.as_strided(tensor.shape, tensor.stride, tensor.offset).contiguous()

    def read_all(self, tensors: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """Read a state dict; entries that are one tensor in the file are one tensor in memory.

        Raises:
            CheckpointError: when the tensors add up to more than the file, so they overlap.
        """
        distinct = set(tensors.values())
        claimed = sum(math.prod(t.shape) * t.dtype.itemsize for t in distinct)
        if claimed > (held := self.path.stat().st_size):
            raise CheckpointError(f"{self.path}: tensors of {claimed} bytes in a file of {held}")
        numbers = {tensor: self.read(tensor) for tensor in distinct}
        return {name: numbers[tensor] for name, tensor in tensors.items()}

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            info = self._zip.getinfo(self._root + name)
        except KeyError as error:
            raise CheckpointError(f"{self.path} lacks the record {name}: it is damaged") from error
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path}: {name} is compressed; torch.save never does that")
        return info

    def _record(self, name: str) -> bytes:
        info = self._info(name)
        with _zip_faults(self.path):
            return self._zip.read(info)

    def _storage(self, args: Any) -> Storage:
        """The storage that a persistent id names, its declared size checked against the file."""
        kind, symbol, key, _device, numel = args
        name = _name(symbol).removeprefix("torch.")
        if kind != "storage" or name not in DTYPES or not isinstance(numel, int) or numel < 0:
            raise CheckpointError(f"{self.path}: unknown storage {name:.80}")
        declared, held = numel * DTYPES[name].itemsize, self._info(f"data/{key}").file_size
        if declared > held:
            raise CheckpointError(
                f"{self.path}: storage {key} declares {declared} bytes and the file holds {held}"
            )
        return Storage(DTYPES[name], key, numel)


@contextmanager
def open_archive(path: str | Path) -> Iterator[TorchArchive]:
    """Open a checkpoint written by torch.save (torch 1.6 or newer, also through dill).

    Raises:
        CheckpointError: when the file is no torch zip, truncated, damaged or inconsistent.
        RefusedError: when it tries to import or call anything that is not plain data.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head == LEGACY_MAGIC or head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle (torch before 1.6), expected the zip format: where you trust "
            "it, load it and torch.save it again"
        )
    if head[:2] != b"PK":
        raise CheckpointError(f"{path} is no zip file, expected a checkpoint written by torch.save")
    with _zip_faults(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield TorchArchive(path, archive)


@contextmanager
def _zip_faults(path: Path) -> Iterator[None]:
    """Whatever zipfile makes of bytes that are not quite a zip file, as one clear error."""
    try:
        yield
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error})") from error


def _name(symbol: Any) -> str:
    return symbol.name if isinstance(symbol, Symbol) else type(symbol).__name__
