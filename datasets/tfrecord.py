"""TFRecord files without TensorFlow: mapped into memory, checked, and read at any offset.

A record is its length (uint64), the masked CRC-32C of those 8 bytes (uint32), the payload and the
masked CRC-32C of the payload (uint32), all little-endian. There is no header and no index.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, OnFault, raise_fault
from fastloop.extras import require

__all__ = ["OVERHEAD", "read", "records", "write"]

HEAD = struct.Struct("<QI")
TAIL = struct.Struct("<I")
OVERHEAD = HEAD.size + TAIL.size
"""Bytes that a record has beside its payload."""


def records(
    path: str | Path, *, verify: bool = True, on_fault: OnFault = raise_fault
) -> Iterator[tuple[int, memoryview]]:
    """The records of a file in their order.

    A payload that fails its checksum is a fault, and the records behind it are still read. A length
    that fails its own, or points behind the end of the file, is a fault that ends the file, for
    nothing says where the next record would be.

    The file must not be made shorter while a payload is in use.

    Args:
        path: of one file.
        verify: whether payloads are checked; lengths always are. Without it only what is looked at
            is read from disk, and nothing ahead of it.
        on_fault: told of each fault, with the file and the offset of the record.

    Yields:
        the offset of the record, and its payload as a read-only view of the file.

    Raises:
        DatasetError: where the file cannot be opened, and by `raise_fault`.
        MissingExtraError: without google-crc32c.
    """
    file = _mapped(path, whole=verify)
    offset = 0
    while offset < len(file):
        try:
            length = _length(path, file, offset)
        except DatasetError as fault:
            return on_fault(fault)
        try:
            payload = _payload(path, file, offset, length, verify)
        except DatasetError as fault:
            on_fault(fault)
        else:
            yield offset, payload
        offset += OVERHEAD + length


def read(
    path: str | Path, offset: int, length: int | None = None, *, verify: bool = True
) -> memoryview:
    """The payload of the record at `offset`, as a read-only view of the file.

    Args:
        path: of one file.
        offset: of the record, as `records` gives it.
        length: of the payload, where it is known, to notice a file that was replaced.
        verify: as for `records`.

    Raises:
        DatasetError: where there is no such record, or a damaged one.
    """
    file = _mapped(path, whole=verify)
    there = _length(path, file, offset)
    if length not in (None, there):
        raise DatasetError(
            f"{path} at byte {offset}: a record of {there} bytes where one of {length} is "
            "expected; the file has changed since it was indexed"
        )
    return _payload(path, file, offset, there, verify)


def write(path: str | Path, payloads: Iterable[bytes]) -> Path:
    """Write a file that appears whole or not at all.

    Raises:
        OSError: when the disk is full; an existing file is untouched.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            for payload in payloads:
                length = struct.pack("<Q", len(payload))
                file.write(length + TAIL.pack(_masked_crc(length)))
                file.write(payload)
                file.write(TAIL.pack(_masked_crc(payload)))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _mapped(path: str | Path, *, whole: bool) -> NDArray[np.uint8]:
    """The bytes of a file, of which `whole` records will be read, or bits here and there.

    An array, because google_crc32c takes one, and no view, without a copy; and a slice of the map
    itself would be a copy.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would never end
            raise DatasetError(f"{path} cannot be read (it is no file)")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return np.empty(0, np.uint8)
            bytes_there = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if not whole and hasattr(mmap, "MADV_RANDOM"):
                bytes_there.madvise(mmap.MADV_RANDOM)
            return np.frombuffer(bytes_there, np.uint8)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from error


def _length(path: str | Path, file: NDArray[np.uint8], offset: int) -> int:
    """Payload bytes of the record at `offset`, all of which are in the file."""
    left = len(file) - offset
    if not 0 <= offset < len(file) or left < HEAD.size:
        raise DatasetError(
            f"{path} at byte {offset}: a record is cut off; {max(left, 0)} bytes are left of its "
            f"{HEAD.size} byte header"
        )
    length, crc = HEAD.unpack_from(file.data, offset)
    if crc != _masked_crc(file[offset : offset + 8]):
        hint = "; is this a TFRecord file, and not compressed?" if offset == 0 else ""
        raise DatasetError(
            f"{path} at byte {offset}: the length of a record fails its checksum{hint}"
        )
    if length > left - OVERHEAD:
        raise DatasetError(
            f"{path} at byte {offset}: a record of {length} bytes is cut off; "
            f"{max(left - OVERHEAD, 0)} are left"
        )
    return int(length)


def _payload(
    path: str | Path, file: NDArray[np.uint8], offset: int, length: int, verify: bool
) -> memoryview:
    payload = file[offset + HEAD.size : offset + HEAD.size + length]
    if verify and TAIL.unpack_from(file.data, offset + HEAD.size + length)[0] != _masked_crc(
        payload
    ):
        raise DatasetError(
            f"{path} at byte {offset}: a record of {length} bytes fails its checksum"
        )
    return payload.data


def _masked_crc(data: bytes | NDArray[np.uint8]) -> int:
    crc: int = require("google_crc32c", extra="data").value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
