"""The rows of one table: a long JSON list of flat objects, read in blocks, wanted fields only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastloop.datasets.errors import DatasetError
from fastloop.extras import require

__all__ = ["read_rows"]

BLOCK = 1 << 24  # bytes read at once: sample_data.json of trainval has 10^9
BRACES = 1000
_BETWEEN = re.compile(rb"\}\s*,\s*\Z")  # what stands before the start of a row
_ROW = re.compile(r"\$\[(\d+)\]")


def read_rows(path: Path, fields: Mapping[str, Any], block: int = BLOCK) -> Iterator[list[Any]]:
    """The rows of a table in order, some thousands at once, as objects that have `fields`.

    A table of nuScenes may hold a gigabyte; its rows are flat, so a block can end before any row.
    msgspec reads the fields asked for and checks their types: a fourth of the time of the standard
    library's `json`.

    Args:
        path: of a JSON file, a list of objects.
        fields: name to type, for instance ``{"token": str, "size": tuple[float, float, float]}``.
        block: bytes read at once.

    Raises:
        DatasetError: not such a list; names the byte, or the row and its field.
    """
    msgspec = require("msgspec", extra="data")
    row: Any = msgspec.defstruct("Row", list(fields.items()), gc=False)
    reader = msgspec.json.Decoder(list[row])
    with path.open("rb") as file:
        text, start, rows_before, opening = b"", 0, 0, b""
        more = True
        while more:
            piece = file.read(max(block, len(text)))
            text += piece
            more = bool(piece)
            cut = _last_row(text) if more else len(text)
            if more and not cut:
                continue
            body = text[:cut].rstrip().removesuffix(b",") + b"]" if more else text
            try:
                rows = reader.decode(opening + body)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                if more and "truncated" in str(error):
                    continue  # the cut was inside a string that looks like the end of a row
                rows = _read_again(
                    path, reader.type, opening + body, start - len(opening), rows_before, error
                )
            yield rows
            text, start, rows_before, opening = (
                text[cut:],
                start + cut,
                rows_before + len(rows),
                b"[",
            )


def _last_row(text: bytes) -> int:
    """Where the last row of `text` starts, which may be cut off; 0 where there is only one, or
    where it is not among the last `BRACES` braces: rows are flat."""
    at = len(text)
    for _ in range(BRACES):
        at = text.rfind(b"{", 0, at)
        if at <= 0:
            break
        if _BETWEEN.search(text, max(0, at - 64), at):
            return at
    return 0


def _read_again(
    path: Path, kind: Any, text: bytes, start: int, rows_before: int, error: Exception
) -> list[Any]:
    """The rows, where only NaN or Infinity stood in the way, as Python writes them; else raises."""
    msgspec = require("msgspec", extra="data")
    if isinstance(error, msgspec.ValidationError):
        row = _ROW.search(str(error))
        where = f"row {rows_before + int(row[1])}: " if row else ""
        raise DatasetError(f"{path}: {where}{_ROW.sub('$', str(error))}") from error
    try:
        return msgspec.convert(json.loads(text.decode()), kind)
    except json.JSONDecodeError as fault:
        offset = start + len(fault.doc[: fault.pos].encode())
        raise DatasetError(f"{path}: no JSON at byte {offset}: {fault.msg}") from error
    except UnicodeDecodeError as fault:
        raise DatasetError(f"{path}: no UTF-8 at byte {start + fault.start}") from error
    except (ValueError, RecursionError) as fault:
        raise DatasetError(f"{path}: no table after byte {start}: {fault}") from error
