"""Messages on the wire: msgpack with openpi's encoding of numpy arrays.

An array is a map ``{b"__ndarray__": True, b"data": ..., b"dtype": "<f4", b"shape": [...]}``, a
numpy scalar ``{b"__npgeneric__": True, b"data": ..., b"dtype": ...}``. Nothing that is received is
ever executed: there is no pickle, and only dtypes of plain numbers are read.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastloop.extras import require

__all__ = ["DTYPES", "CodecError", "pack", "unpack"]

DTYPES = {np.dtype(kind).str: np.dtype(kind) for kind in (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
)}  # fmt: skip
MAX_DIMENSIONS = 8
MAX_ENTRIES = 4096  # of a map or a list; arrays are no lists
MAX_TOTAL = 65536  # of all of them: building millions of objects would stop every other thread


class CodecError(ValueError):
    """Bytes that are no message, or a value that cannot be sent."""


def pack(message: Any) -> bytes:
    """A message of maps, lists, numbers, texts, bytes and numpy arrays as bytes.

    Raises:
        CodecError: it holds something else, or an array of another dtype than `DTYPES`.
    """
    try:
        packed: bytes = _msgpack().packb(message, default=_encode)
    except (TypeError, OverflowError) as error:
        raise CodecError(f"cannot be sent: {error}") from error
    return packed


def unpack(data: bytes) -> Any:
    """The message of `data`; its arrays are read-only views of it.

    Raises:
        CodecError: `data` is no msgpack, nests too deeply, or holds an array that is not what it
            says it is.
    """
    total = 0

    def counted(entries: Any) -> Any:
        nonlocal total
        total += len(entries)
        if total > MAX_TOTAL:
            raise CodecError(f"a message has at most {MAX_TOTAL} entries in all")
        return entries

    try:
        return _msgpack().unpackb(
            data,
            object_hook=lambda entries: _decode(counted(entries)),
            list_hook=counted,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except CodecError:
        raise
    # What msgpack raises for bytes that are none; a map whose key is a list is a TypeError.
    except (ValueError, TypeError, RecursionError, _msgpack().UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise CodecError(f"{len(data)} bytes are no msgpack message: {reason}") from error


def _msgpack() -> ModuleType:
    return require("msgpack", extra="serve")


def _encode(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a message holds no {type(value).__name__}")
    dtype = _dtype(value.dtype.str)
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": dtype.str,
        b"shape": value.shape,
    }


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _scalar(value)
    return value


def _array(value: dict[Any, Any]) -> npt.NDArray[Any]:
    dtype, shape, data = _dtype(value.get(b"dtype")), value.get(b"shape"), value.get(b"data")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise CodecError(f"an array's shape is a list of at most {MAX_DIMENSIONS}, got {shape!r}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise CodecError(f"an array's sizes are whole numbers from 0, got {shape!r}")
    if not isinstance(data, bytes):
        raise CodecError(f"an array's data are bytes, got {type(data).__name__}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise CodecError(
            f"an array {shape} of {dtype.str} has {expected} bytes, and {len(data)} came"
        )
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # a size beyond what numpy counts, beside a size of 0
        raise CodecError(f"an array cannot have shape {shape}: {error}") from error


def _scalar(value: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(value.get(b"dtype")), value.get(b"data")
    if not isinstance(data, bool | int | float):
        raise CodecError(f"a scalar's data is a number, got {type(data).__name__}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not (isinstance(data, int) and limits.min <= data <= limits.max):
            raise CodecError(f"{data!r} is no {dtype.name}")
    scalar: np.generic = dtype.type(data)
    return scalar


def _dtype(name: Any) -> np.dtype[Any]:
    known = DTYPES.get(name) if isinstance(name, str) else None
    if known is None:
        raise CodecError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return known
