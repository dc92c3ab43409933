"""Which tokens each slot of a value may take."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from fastloop.policies.vla.schema import (
    UNSAFE,
    Choice,
    Field,
    Flag,
    Schema,
    SchemaError,
    Section,
    Text,
    Waypoints,
)
from fastloop.policies.vla.tokenizer import NULL, Tokenizer, token_id

__all__ = ["Kinds", "closings"]

SPECIAL = re.compile(r"<\|.*\|>|\|<.*>\|")


def closings(schema: Schema, section: Section) -> list[tuple[str, Field, str]]:
    """Key, kind and what closes the string, comma included, of each field of a section."""
    fields = list(section.fields.items())
    last_section = section is schema.sections[-1]
    return [
        (key, field, '"' if (last_section if not key else key == fields[-1][0]) else '",')
        for key, field in fields
    ]


class Kinds:
    """Sets of tokens by name, and which of them each slot of a field has.

    A set says what one slot may hold whatever stands beside it, so two things are left to whoever
    reads the answer: that a choice is one of its words as a whole, and what follows a NULL.

    Args:
        schema, tokenizer: of the answer.
        vocab: V.
        scaffold: ids of the scaffold, which make up row 0.

    Attributes:
        names: what each row is, in words.
        allowed: (V,) bool a row.
        rows: path of a field to the row of each of its slots.

    Raises:
        SchemaError: where a value cannot be written in the tokens that the schema gives it.
    """

    def __init__(
        self, schema: Schema, tokenizer: Tokenizer, vocab: int, scaffold: Iterable[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.null_id = token_id(tokenizer, NULL)
        self.pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        self.names: list[str] = []
        self.allowed: list[torch.Tensor] = []
        self._row("scaffold", scaffold)
        self.rows: dict[str, list[int]] = {}
        for section in schema.sections:
            for key, field, closing in closings(schema, section):
                path = f"{section.name}.{key}" if key else section.name
                try:
                    self.rows[path] = self._field(path, field, closing)
                except ValueError as error:
                    raise SchemaError(f"{schema.name}, {path}: {error}") from None

    def _field(self, path: str, field: Field, closing: str) -> list[int]:
        match field:
            case Flag():
                return [self._row("yes or no", self._single("yes", "no"))]
            case Waypoints():
                sign = self._row("a sign", self._single(" +", " -"))
                digit = self._row("a digit", self._single(*"0123456789"))
                point = self._row("a decimal point", self._single("."))
                number = [sign, *[digit] * field.digits, point, *[digit] * field.decimals]
                return number * field.dim * field.count
            case Text():
                text = self._row("text", self._text())
                if not field.closes:
                    return [text] * field.tokens
                last = self._row(f"text that ends in {closing}", self._closers(closing))
                return [*[text] * (field.tokens - 1), last]
            case Choice():
                return self._choice(path, field)

    def _choice(self, path: str, field: Choice) -> list[int]:
        words = [self.tokenizer.encode(word) for word in field.words]
        for word, ids in zip(field.words, words, strict=True):
            if len(ids) > field.tokens:
                raise ValueError(f"{word!r} is {len(ids)} tokens, more than {field.tokens}")
        padded = [ids + [self.null_id] * (field.tokens - len(ids)) for ids in words]
        if len(set(map(tuple, padded))) < len(padded):
            raise ValueError("two words are the same tokens")
        return [
            self._row(f"token {slot} of {path}", ids)
            for slot, ids in enumerate(zip(*padded, strict=True))
        ]

    def _single(self, *texts: str) -> list[int]:
        return [token_id(self.tokenizer, text) for text in texts]

    def _text(self) -> list[int]:
        return [self.null_id] + [
            token
            for token, piece in enumerate(self.pieces)
            if piece and not UNSAFE.search(piece) and not SPECIAL.fullmatch(piece)
        ]

    def _closers(self, closing: str) -> list[int]:
        ids = [
            token
            for token, piece in enumerate(self.pieces)
            if piece.endswith(closing) and not UNSAFE.search(piece.removesuffix(closing))
        ]
        if not ids:
            raise ValueError(f"no token ends in {closing}, which its last slot has to hold")
        return ids

    def _row(self, name: str, ids: Iterable[int]) -> int:
        if name not in self.names:
            row = torch.zeros(self.vocab, dtype=torch.bool)
            row[list(ids)] = True
            self.names.append(name)
            self.allowed.append(row)
        return self.names.index(name)
