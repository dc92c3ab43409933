"""Whether answers are JSON, and whether they say what the schema lets them say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastloop.accel.decoding.result import Decoded
from fastloop.policies.vla.answer import read_text
from fastloop.policies.vla.canvas import Layout
from fastloop.policies.vla.schema import Schema
from fastloop.sims.stats import Interval, wilson

__all__ = ["Validity", "measure_validity"]


@dataclass(frozen=True)
class Validity:
    """Shares of answers, every rollout being one.

    Attributes:
        json: that are JSON, with a text for every field of the schema.
        schema: all of whose values can be read: words of the list, yes or no, as many waypoints.
    """

    json: Interval
    schema: Interval


def measure_validity(layout: Layout, answers: Sequence[Decoded]) -> Validity:
    """Of texts, as a reader has them who knows nothing of slots."""
    rows = [row for one in answers for row in one.tokens.tolist()]
    texts = [layout.tokenizer.decode([i for i in row if i != layout.null_id]) for row in rows]
    read = sum(not read_text(layout.schema, text).reason for text in texts)
    whole = sum(_is_whole(layout.schema, text) for text in texts)
    return Validity(wilson(whole, len(texts)), wilson(read, len(texts)))


def _is_whole(schema: Schema, text: str) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    for path, _ in schema.fields():
        value: Any = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            return False
    return True
