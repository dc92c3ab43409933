"""NumPy's ``.npy`` and ``.npz`` files, read without trusting what they say of themselves."""

from __future__ import annotations

import io
import math
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, os_errors_are_faults

__all__ = ["check_text", "read_npy", "read_npz"]

LARGEST = 256 << 20  # bytes of an array of an .npz, unpacked
KINDS = "biufU"
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
    OSError, RecursionError, RuntimeError, SyntaxError, TypeError, ValueError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npy(path: Path) -> NDArray[Any]:
    """The array of numbers or words in a ``.npy`` file, read-only.

    Raises:
        DatasetError: it is missing or damaged, or holds anything else.
    """
    _check_file(path)
    try:
        return _array(path.read_bytes())
    except _DAMAGE as error:
        raise DatasetError(f"{path} is no readable .npy file ({error})") from error


def read_npz(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Those of the arrays `names` that an ``.npz`` file holds, read-only; nothing is unpickled.

    Raises:
        DatasetError: it is missing or damaged, or one of them holds no numbers or words, or is
            larger than 256 MiB.
    """
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.removesuffix(".npy"): _member(archive, member)
                for member in archive.namelist()
                if member.removesuffix(".npy") in names
            }
    except _DAMAGE as error:
        raise DatasetError(f"{path} is no readable .npz file ({error})") from error


def check_text(values: NDArray[Any], where: str) -> None:
    """Refuse numbers that are no characters; Python fails on them in ways of its own."""
    for name in values.dtype.names or ():
        check_text(values[name], where)
    if values.dtype.kind == "U":
        codes = np.ascontiguousarray(values).view(values.dtype.byteorder + "u4")
        if (codes > sys.maxunicode).any():
            raise DatasetError(f"{where} has text that is no Unicode")


@os_errors_are_faults()
def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DatasetError(f"{path} is missing, or no file")


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in a way that NumPy does not use")
    with archive.open(entry) as member:
        data = member.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST} bytes")
    try:
        return _array(data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _array(data: bytes) -> NDArray[Any]:
    """The array of a ``.npy`` file, whose header is believed only where the bytes are there."""
    stream = io.BytesIO(data)
    header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(stream)]
    shape, fortran, dtype = header(stream)
    rest = len(data) - stream.tell()
    if dtype.kind not in KINDS or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"an array of type {dtype} and shape {shape}, expected numbers or words")
    if math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"it says {dtype} of shape {shape}, and has {rest} bytes")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    check_text(flat, "it")
    return flat.reshape(shape, order="F" if fortran else "C")
