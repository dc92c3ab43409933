"""From the values of an answer to the tokens of its canvas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.policies.vla.canvas import Layout
from fastloop.policies.vla.schema import Choice, Field, Flag, Schema, Text, Waypoints, clean
from fastloop.policies.vla.tokenizer import NULL

__all__ = ["Written", "check_points", "format_number", "write"]

OLD_NULL = "|<NULL>|"  # in published answers


@dataclass(frozen=True)
class Written:
    """An answer as the model shall write it.

    Attributes:
        tokens: (n,) int64, one a slot of the canvas, scaffold included.
        notes: what could not be written as it was given (a text that was cut, a quote).
    """

    tokens: torch.Tensor
    notes: tuple[str, ...]


def write(layout: Layout, values: Mapping[str, Any]) -> Written:
    """The tokens of an answer: what a model is taught.

    Numbers become sign, digits, point and decimals; texts lose quotes, backslashes and line breaks,
    are cut where they are too long and filled up with NULL where they are short.

    Args:
        layout: from `fastloop.policies.vla.canvas.build_layout`.
        values: section to value, or to field to value: a bool or ``"yes"``/``"no"`` for a flag, a
            text, one of the words of a choice, ``count`` points of ``dim`` numbers.

    Raises:
        ValueError: where a value is missing, unknown or cannot be written, with its path.
    """
    given = _flat(layout.schema, values)
    tokens, notes = layout.canvas.tokens.clone(), []
    for path, field in layout.schema.fields():
        try:
            ids, note = _encode(layout, path, field, given.pop(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        tokens[list(layout.slots[path])] = torch.tensor(ids)
        if note:
            notes.append(f"{path}: {note}")
    return Written(tokens, tuple(notes))


def _flat(schema: Schema, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path, one for each field of the schema and no other."""
    if not isinstance(values, Mapping):
        raise ValueError(f"an answer maps sections to values, got {values!r:.80}")
    flat: dict[str, Any] = {}
    for section, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{section}.{key}": one for key, one in value.items()})
        else:
            flat[str(section)] = value
    paths = [path for path, _ in schema.fields()]
    missing = [path for path in paths if path not in flat]
    unknown = [path for path in flat if path not in paths]
    if missing or unknown:
        raise ValueError(
            f"the answer does not follow {schema.name}: missing {missing}, unknown {unknown}"
        )
    return flat


def _encode(layout: Layout, path: str, field: Field, value: Any) -> tuple[list[int], str]:
    tokenizer = layout.tokenizer
    match field:
        case Flag():
            return tokenizer.encode(_flag(value)), ""
        case Choice():
            if value not in field.words:
                raise ValueError(f"{value!r} is none of {', '.join(field.words)}")
            return _pad(tokenizer.encode(value), field.tokens, layout.null_id), ""
        case Waypoints():
            rows = check_points(field, value)
            numbers = (format_number(field, number) for row in rows for number in row)
            return [token for number in numbers for token in _spell(layout, number)], ""
        case Text():
            return _encode_text(layout, path, field, value)


def _encode_text(layout: Layout, path: str, field: Text, value: Any) -> tuple[list[int], str]:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.80}")
    asked = value.replace(OLD_NULL, "").replace(NULL, "").strip()
    text = clean(asked)
    ids = layout.tokenizer.encode(text)
    room = field.tokens - field.closes
    notes = [] if text == asked else ["characters that JSON would escape replaced"]
    if len(ids) > room:
        notes.append(f"{len(ids)} tokens cut to {room}")
        ids = ids[:room]
        while layout.tokenizer.decode(ids).endswith("\ufffd"):  # in the middle of a character
            ids.pop()
    ids = _pad(ids, room, layout.null_id)
    if field.closes:
        ids.append(_closer(layout, path))
    allowed = layout.canvas.allowed[layout.canvas.kind[list(layout.slots[path])]]
    for token, row in zip(ids, allowed, strict=True):
        if not row[token]:
            raise ValueError(f"{layout.tokenizer.decode([token])!r} may not stand in a text")
    return ids, "; ".join(notes)


def _closer(layout: Layout, path: str) -> int:
    """The shortest token that closes the string, one that begins with a space first."""
    row = layout.canvas.allowed[layout.canvas.kind[layout.slots[path][-1]]]
    pieces = {token: layout.tokenizer.decode([token]) for token in row.nonzero().flatten().tolist()}
    best: int = min(pieces, key=lambda i: (pieces[i][0] != " ", len(pieces[i]), i))
    return best


def _pad(ids: list[int], length: int, null_id: int) -> list[int]:
    return ids + [null_id] * (length - len(ids))


def _flag(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "yes" or value == "no":
        return str(value)
    raise ValueError(f"expected true or false, or 'yes' or 'no', got {value!r:.80}")


def _spell(layout: Layout, number: str) -> list[int]:
    """One token a character; the space before the sign belongs to the sign."""
    return [
        token
        for character in [" " + number[0], *number[1:]]
        for token in layout.tokenizer.encode(character)
    ]


def format_number(field: Waypoints, number: float) -> str:
    """Sign, digits, point, decimals, such as ``+014.70``; never ``-000.00``."""
    rounded = round(number, field.decimals)
    sign = "-" if rounded < 0 else "+"
    return f"{sign}{abs(rounded):0{field.width - 1}.{field.decimals}f}"


def check_points(field: Waypoints, value: Any) -> list[list[float]]:
    """`value` as `count` rows of `dim` numbers that can be written; ValueError where it is not."""
    try:
        rows = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"expected points of {field.dim} numbers, got {value!r:.80}") from None
    if rows.shape != (field.count, field.dim):
        raise ValueError(f"expected {field.count} x {field.dim} numbers, got {tuple(rows.shape)}")
    points: list[list[float]] = rows.tolist()
    for number in rows.flatten().tolist():
        if not math.isfinite(number) or abs(round(number, field.decimals)) > field.limit:
            raise ValueError(f"numbers must be within {field.limit} of 0, got {number}")
    return points
