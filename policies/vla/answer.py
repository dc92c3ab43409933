"""What a model wrote, read back: values where they can be read, and exactly what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastloop.policies.vla.canvas import Layout
from fastloop.policies.vla.schema import Choice, Field, Flag, Schema, Text, Waypoints
from fastloop.policies.vla.tokenizer import NULL

__all__ = ["Answer", "read_text", "read_tokens"]

STOP = "<|im_end|>"
NUMBER = r"\s*([+-]?\d{1,15}(?:\.\d{0,15})?)\s*"
SHOWN = 3  # faults that a reason spells out
LEAST = 3  # points that a plan is made of where the rest cannot be read


@dataclass(frozen=True)
class Answer:
    """An answer that was read; nothing raises, a loop goes on.

    Attributes:
        values: section to value, or to field to value: bool, text, or `count` lists of `dim`
            numbers. What could not be read is absent.
        text: as written, NULL removed.
        reason: what is wrong, with section and slot; "" where nothing is.
        fallback: True where waypoints could not be read at all: follow another plan.
    """

    values: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    reason: str = ""
    fallback: bool = False


def read_tokens(layout: Layout, tokens: torch.Tensor | Sequence[int]) -> Answer:
    """Read an answer that was written into a canvas.

    Args:
        layout: of the canvas.
        tokens: (n,) ids, one a slot; anything else is read as free text.
    """
    ids = torch.as_tensor(tokens).flatten().tolist()
    known = [i for i in ids if 0 <= i < len(layout.tokenizer) and i != layout.null_id]
    text = layout.tokenizer.decode(known)
    canvas = layout.canvas
    if len(ids) != len(canvas):
        answer = read_text(layout.schema, text)
        reason = f"{len(ids)} tokens for a canvas of {len(canvas)}"
        return replace(answer, reason="; ".join(filter(None, [reason, answer.reason])))
    values: dict[str, Any] = {}
    faults, fallback = [], False
    scaffold = (canvas.given & (torch.tensor(ids) != canvas.tokens)).nonzero().flatten().tolist()
    for slot in scaffold:
        name = canvas.sections[int(canvas.section[slot])]
        expected = layout.tokenizer.decode([int(canvas.tokens[slot])])
        faults.append(f"{name}, slot {slot}: {_show(layout, ids[slot])} in place of {expected!r}")
    for path, kind in layout.schema.fields():
        fault = _refused(layout, path, ids)
        if not fault:
            value, fault = _read_slots(layout, kind, [ids[slot] for slot in layout.slots[path]])
        if fault:
            faults.append(f"{path}, {fault}")
            fallback |= isinstance(kind, Waypoints)
        else:
            _put(values, path, value)
    return Answer(values, text, _reason(faults), fallback)


def read_text(schema: Schema, text: str) -> Answer:
    """Read an answer that was written freely, token by token or by a server.

    Waypoints that cannot be read where they belong are taken from wherever pairs of numbers stand
    in the text; too few are filled up with the last one, as Fast-dDrive's evaluation does.

    Args:
        schema: that it should follow.
        text: JSON, up to an end-of-turn token.
    """
    text = text.split(STOP)[0].replace(NULL, "").strip()
    values: dict[str, Any] = {}
    faults: list[str] = []
    fallback = False
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        document, faults = {}, [f"no JSON: {error}"]
    for path, kind in schema.fields():
        value: Any = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        value, fault = _read(kind, value) if isinstance(value, str) else (None, "no text there")
        if fault:
            faults.append(f"{path}: {fault}")
            value = _salvage(kind, text) if isinstance(kind, Waypoints) else None
            fallback |= value == []
        if value or not fault:
            _put(values, path, value)
    return Answer(values, text, _reason(faults), fallback)


def _reason(faults: list[str]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _read(kind: Field, text: str) -> tuple[Any, str]:
    """The value that a string holds, and what is wrong with it."""
    match kind:
        case Flag():
            fault = "" if text in ("yes", "no") else f"{text!r:.40} is neither yes nor no"
            return text == "yes", fault
        case Choice():
            fault = f"{text!r:.40} is none of {', '.join(kind.words)}"
            return text, "" if text in kind.words else fault
        case Waypoints():
            points = _points(kind, text)
            fault = f"{len(points)} points of {kind.dim} numbers, expected {kind.count}"
            return points, "" if len(points) == kind.count else fault
        case Text():
            return re.sub(r'",?$', "", text).strip() if kind.closes else text.strip(), ""


def _read_slots(layout: Layout, kind: Field, ids: list[int]) -> tuple[Any, str]:
    """The same from the tokens of the string, each of which may stand where it stands."""
    if isinstance(kind, Waypoints):
        text = layout.tokenizer.decode(ids).split()  # a sign begins with a space
        rows = [text[i : i + kind.dim] for i in range(0, len(text), kind.dim)]
        return [[float(number) for number in row] for row in rows], ""
    return _read(kind, layout.tokenizer.decode([i for i in ids if i != layout.null_id]))


def _points(kind: Waypoints, text: str) -> list[list[float]]:
    pairs = re.finditer(rf"\[{','.join([NUMBER] * kind.dim)}\]", text)
    return [[float(number) for number in pair.groups()] for pair in pairs]


def _salvage(kind: Waypoints, text: str) -> list[list[float]]:
    points = _points(kind, text)[: kind.count]
    if len(points) < min(LEAST, kind.count):
        return []
    return points + [points[-1]] * (kind.count - len(points))


def _refused(layout: Layout, path: str, ids: list[int]) -> str:
    """The first slot of a field that holds what it may not hold."""
    canvas, own = layout.canvas, layout.slots[path]
    for rank, slot in enumerate(own):
        row = int(canvas.kind[slot])
        inside = 0 <= ids[slot] < canvas.allowed.shape[1]
        if not inside or not canvas.allowed[row, ids[slot]]:
            shown = f"token {rank} of {len(own)} (slot {slot}): {_show(layout, ids[slot])}"
            return f"{shown} in place of {layout.kinds[row]}"
    return ""


def _show(layout: Layout, token: int) -> str:
    if not 0 <= token < len(layout.tokenizer):
        return f"the unknown token {token}"
    return repr(layout.tokenizer.decode([token]))


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    section, _, key = path.partition(".")
    if key:
        values.setdefault(section, {})[key] = value
    else:
        values[section] = value
