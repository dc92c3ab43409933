"""What the words of a ``.zarray`` mean: types of elements, fill values and compressors."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError
from fastloop.extras import require

__all__ = ["COMPRESSORS", "check_compressor", "decode", "read_dtype", "read_fill"]

COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip")
"""Identifiers of the compressors that are read; null, for none, is one more."""

MAX_ITEM = 2**24

_PLAIN = re.compile(r"[<>|]([biufcSUV][0-9]{1,7}|[mM]8\[[0-9]{0,9}[a-zA-Z]{1,2}\])")


def read_dtype(given: Any, where: str) -> np.dtype[Any]:
    """The type of an array's elements.

    Args:
        given: a NumPy type string such as ``<f4``, or a list of ``[name, type]`` or
            ``[name, type, shape]``.
        where: of what, for messages.

    Raises:
        DatasetError: for Python objects, and for what NumPy does not know.
    """
    try:
        dtype = np.dtype(_dtype(given, where, depth=0))
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}: dtype {str(given)[:80]!r} ({error})") from error
    if dtype.hasobject or not 0 < dtype.itemsize <= MAX_ITEM:
        raise DatasetError(
            f"{where}: elements of {dtype.itemsize} bytes; expected 1 to {MAX_ITEM}, and no objects"
        )
    return dtype


def _dtype(given: Any, where: str, depth: int) -> Any:
    if isinstance(given, str):
        if _PLAIN.fullmatch(given):
            return given
        why = "arrays of Python objects are not read" if "O" in given else "expected such as <f4"
        raise DatasetError(f"{where}: dtype {given[:80]!r}; {why}")
    if not isinstance(given, list) or not given or depth > 3:
        raise DatasetError(f"{where}: dtype {str(given)[:80]!r}; expected a type or a list")
    fields = []
    for field in given:
        match field:
            case [str(name), kind]:
                fields.append((name, _dtype(kind, where, depth + 1)))
            case [str(name), kind, list(shape)] if all(type(n) is int and n > 0 for n in shape):
                fields.append((name, _dtype(kind, where, depth + 1), tuple(shape)))
            case _:
                raise DatasetError(f"{where}: field {str(field)[:80]!r} of its dtype")
    return fields


def read_fill(given: Any, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """The value, of shape (), of whatever is not stored; zero where none is given."""
    fill = np.zeros((), dtype)
    if given is None or (dtype.kind in "SUV" and given in (0, "")):
        return fill
    try:
        if dtype.kind in "SV":
            raw = base64.b64decode(given, validate=True)
            if dtype.kind == "S":  # zarr leaves out the zeros at its end
                raw = raw.ljust(dtype.itemsize, b"\0")
            fill = np.frombuffer(raw, dtype).reshape(())
        elif dtype.kind == "U":
            fill[...] = str(given)
        elif dtype.kind in "mM":
            fill = np.array(given, np.int64).astype(dtype.byteorder + "i8").view(dtype)
        elif dtype.kind == "c":
            real, imaginary = given
            fill[...] = complex(_float(real), _float(imaginary))
        elif dtype.kind == "f":
            with np.errstate(over="ignore"):
                fill[...] = _float(given)
        else:
            whole = int(given)
            bounds = (0, 1) if dtype.kind == "b" else np.iinfo(dtype)
            low, high = bounds if isinstance(bounds, tuple) else (bounds.min, bounds.max)
            if whole != given or not low <= whole <= high:
                raise ValueError(f"expected {low} to {high}")
            fill[...] = whole
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{where}: fill_value {str(given)[:80]!r} does not fit dtype {dtype} ({error})"
        ) from error
    return fill


def _float(given: Any) -> float:
    if isinstance(given, str) and given not in ("NaN", "Infinity", "-Infinity"):
        raise ValueError("expected a number, NaN, Infinity or -Infinity")
    return float(given)


def check_compressor(config: Any, where: str) -> None:
    """Refuse a compressor that is not read, before anything else is done with its array."""
    if config is None:
        return
    name = config.get("id") if isinstance(config, dict) else config
    if not isinstance(config, dict) or name not in COMPRESSORS:
        raise DatasetError(
            f"{where}: compressor {str(name)[:80]!r}; have: {', '.join(COMPRESSORS)}, none. "
            "Names with imagecodecs_ are pictures: `pip install imagecodecs`, register_codecs() "
            "of its numcodecs module, read with zarr 2 and write the array with blosc"
        )


def decode(data: bytes, config: dict[str, Any] | None, nbytes: int, where: str) -> Any:
    """A chunk of `nbytes` bytes from its file's `data`; never takes more memory than that.

    Raises:
        DatasetError: where it is damaged, or holds another number of bytes.
    """
    name = None if config is None else config["id"]
    held, decoded = _decode(data, name, nbytes, where)
    if held not in (nbytes, None):
        raise DatasetError(f"{where}: a chunk of {held} bytes, expected {nbytes} ({name})")
    return decoded


def _decode(data: bytes, name: str | None, nbytes: int, where: str) -> tuple[int | None, Any]:
    if name is None:
        return len(data), data
    if name in ("zlib", "gzip"):
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | (16 if name == "gzip" else 0))
        try:
            unpacked = unpacker.decompress(data, nbytes + 1)
        except zlib.error as error:
            raise DatasetError(f"{where} is damaged ({error})") from error
        return (len(unpacked) if unpacker.eof else -1), unpacked
    held = _DECLARED[name](data)
    if held not in (nbytes, None):
        return held, b""
    module = require(f"numcodecs.{name}", extra="data")
    try:
        return held, module.decompress(data, np.empty(nbytes, np.uint8))
    except (RuntimeError, ValueError) as error:
        raise DatasetError(f"{where} is damaged ({name}: {error})") from error


def _blosc_length(data: bytes) -> int:
    """Bytes that a Blosc chunk says it holds, -1 where it is not as long as it says itself."""
    # https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst; Blosc reads `cbytes`
    # bytes without being told how many there are.
    whole = len(data) >= 16 and int.from_bytes(data[12:16], "little") == len(data)
    return int.from_bytes(data[4:8], "little") if whole else -1


def _lz4_length(data: bytes) -> int:
    """Bytes that an LZ4 chunk of numcodecs says it holds."""
    return int.from_bytes(data[:4], "little") if len(data) > 4 else -1


def _zstd_length(data: bytes) -> int | None:
    """Bytes that a Zstandard frame says it holds (RFC 8878, 3.1.1.1); None where it does not."""
    if len(data) < 6:
        return -1
    single = data[4] >> 5 & 1
    width = (single, 2, 4, 8)[data[4] >> 6]
    start = 6 - single + (0, 1, 2, 4)[data[4] & 3]
    if not width:
        return None
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


_DECLARED = {"blosc": _blosc_length, "lz4": _lz4_length, "zstd": _zstd_length}
