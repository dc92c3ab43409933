"""The wire format of protocol buffers, walked without copying what is skipped."""

from __future__ import annotations

from collections.abc import Iterator

from fastloop.datasets.errors import DatasetError

__all__ = ["fields", "split"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview, *, where: str) -> Iterator[tuple[int, int, int, int]]:
    """The fields of one message, without those of the messages in it.

    Args:
        message: its bytes; only tags and lengths are looked at.
        where: file and offset, for the fault.

    Yields:
        field number; where its tag, its content and the next field begin.

    Raises:
        DatasetError: where the bytes are no message.
    """
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at, where)
        number, kind = tag >> 3, tag & 7
        content = at
        if kind == VARINT:
            _, at = _varint(message, at, where)
        elif kind == BYTES:
            length, content = _varint(message, at, where)
            at = content + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise DatasetError(f"{where}: unknown wire type {kind}; this is no such message")
        if not number or at > len(message):
            raise DatasetError(f"{where}: a field is cut off or has no number; the message is cut")
        yield number, start, content, at


def split(message: memoryview, number: int, *, where: str) -> tuple[bytes, list[tuple[int, int]]]:
    """A message without its field `number`, and where the contents of that field are.

    Returns:
        the other fields, which are a message again; (start, stop) of each time the field occurs.

    Raises:
        DatasetError: where the bytes are no message.
    """
    others, spans = [], []
    for found, start, content, stop in fields(message, where=where):
        if found == number:
            spans.append((content, stop))
        else:
            others.append(message[start:stop])
    return b"".join(others), spans


def _varint(message: memoryview, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise DatasetError(f"{where}: a number is cut off or too long; this is no such message")
