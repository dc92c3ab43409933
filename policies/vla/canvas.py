"""From a schema and a tokenizer to the canvas: what stands already, what may be written where."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.policies.vla.kinds import Kinds, closings
from fastloop.policies.vla.schema import ASSIGNMENTS, FOLDER, Choice, Field, Schema, Text, Waypoints
from fastloop.policies.vla.tokenizer import MASK, NULL, Tokenizer, token_id

__all__ = ["Layout", "assign_blocks", "build_layout", "template", "vocabulary"]

WORDS = FOLDER / "words.txt"


@dataclass(frozen=True)
class Layout:
    """A canvas, and what its slots mean.

    Attributes:
        canvas: of the n tokens of the answer, without whatever ends it.
        schema, tokenizer: what it was built from.
        slots: path of a field (``section`` or ``section.field``) to its slots in the canvas.
        kinds: what each row of ``canvas.allowed`` is, in words.
        mask_id, null_id: tokens for "not yet written" and for "nothing".
    """

    canvas: Canvas
    schema: Schema
    tokenizer: Tokenizer
    slots: dict[str, tuple[int, ...]]
    kinds: tuple[str, ...]
    mask_id: int
    null_id: int

    def block_sections(self) -> torch.Tensor:
        """(blocks,) int64: the section whose values a block holds, for weights and noise."""
        values = ~self.canvas.given
        sections = torch.zeros(int(self.canvas.block.max()) + 1, dtype=torch.int64)
        sections[self.canvas.block[values]] = self.canvas.section[values]
        return sections


def template(schema: Schema) -> str:
    """The answer as JSON, with `MASK` for every token of a value.

    A closing quote that belongs to a value's last token (`Text.closes`) is left out.
    """
    return "".join(_section_texts(schema))


def vocabulary(schema: Schema) -> list[str]:
    """Texts for `fastloop.policies.vla.tokenizer.build_tokenizer`: the scaffold, the words of flags
    and choices, signs, and common words of explanations, small and capitalized."""
    chosen = [
        word for _, field in schema.fields() if isinstance(field, Choice) for word in field.words
    ]
    words = WORDS.read_text(encoding="utf-8").split()
    forms = [f" {word} {word.capitalize()}" for word in words]
    return [template(schema), "yes", "no", " + -", *chosen, *forms, *map(str.capitalize, words)]


def build_layout(
    schema: Schema,
    tokenizer: Tokenizer,
    *,
    vocab: int | None = None,
    assignment: str | None = None,
) -> Layout:
    """Lay an answer out for a tokenizer.

    The whole JSON is tokenized once, with mask tokens for values, so that scaffold is what the
    tokenizer makes of it in its place; values are cut from scaffold by the mask tokens.

    Args:
        schema: what to write.
        tokenizer: has to know `MASK` and `NULL`.
        vocab: V, rows of the model's logits; those beyond the tokenizer's are never allowed.
        assignment: instead of the schema's.

    Raises:
        SchemaError: where this tokenizer cannot write this schema, with the field.
        ValueError: where it lacks `MASK` or `NULL`, or does not give back what it is given.
    """
    mask_id, null_id = token_id(tokenizer, MASK), token_id(tokenizer, NULL)
    vocab = len(tokenizer) if vocab is None else vocab
    if vocab < len(tokenizer):
        raise ValueError(f"{len(tokenizer)} tokens do not fit a model of {vocab}")
    tokens = torch.tensor(tokenizer.encode(template(schema)))
    given = tokens != mask_id
    open_slots = iter((~given).nonzero().flatten().tolist())
    slots = {path: tuple(islice(open_slots, field.tokens)) for path, field in schema.fields()}
    kinds = Kinds(schema, tokenizer, vocab, scaffold=tokens[given].tolist())
    kind = torch.zeros_like(tokens)
    for path, own in slots.items():
        kind[list(own)] = torch.tensor(kinds.rows[path])
    section = _sections(schema, tokenizer, tokens)
    canvas = Canvas(
        tokens=tokens,
        given=given,
        block=assign_blocks(~given, section, schema.block_size, assignment or schema.assignment),
        section=section,
        kind=kind,
        allowed=torch.stack(kinds.allowed),
        sections=tuple(part.name for part in schema.sections),
    )
    return Layout(canvas, schema, tokenizer, slots, tuple(kinds.names), mask_id, null_id)


def assign_blocks(
    values: torch.Tensor, section: torch.Tensor, block_size: int, assignment: str
) -> torch.Tensor:
    """Cut the values of every section into blocks, and give each scaffold token to one of them.

    - ``own_section``: to that of the nearest value of its section, the later of two as near.
    - ``release``: to that of the nearest token that has a block by then, the right one first, token
      by token and section by section. Because the left neighbor has one and the right one has not,
      a section's opening goes to the last block of the section before, all but the token right
      before its first value. This is what Fast-dDrive's checkpoints were trained with.

    Args:
        values: (n,) bool, True where a value stands.
        section: (n,) int64, never falls; every section has a value.
        block_size: values of a block.
        assignment: one of the two.

    Returns:
        (n,) int64, never falls.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"unknown assignment {assignment!r}; have: {', '.join(ASSIGNMENTS)}")
    block = [-1] * len(values)
    first = 0
    for index in sorted(set(section.tolist())):
        slots = (section == index).nonzero().flatten().tolist()
        filled = [slot for slot in slots if values[slot]]
        if not filled:
            raise ValueError(f"section {index} has no value")
        for rank, slot in enumerate(filled):
            block[slot] = first + rank // block_size
        for slot in slots:
            if values[slot]:
                continue
            if assignment == "own_section":
                block[slot] = block[min(filled, key=lambda v: (abs(v - slot), -v))]
            else:
                block[slot] = block[_nearest(block, slot)]
        first += -(-len(filled) // block_size)
    return torch.tensor(block)


def _nearest(block: list[int], slot: int) -> int:
    for distance in range(1, len(block)):
        for other in (slot + distance, slot - distance):
            if 0 <= other < len(block) and block[other] >= 0:
                return other
    raise AssertionError("a section has a value")


def _section_texts(schema: Schema) -> list[str]:
    """The template cut where sections begin: after the comma, so with the space before the key."""
    texts = []
    for section in schema.sections:
        inside = [
            (f'"{key}": ' if key else "") + f'"{_masks(field)}{"" if _closes(field) else closing}'
            for key, field, closing in closings(schema, section)
        ]
        whole = " ".join(inside)
        if "" not in section.fields:
            whole = f"{{{whole}}}" + ("" if section is schema.sections[-1] else ",")
        texts.append(f' "{section.name}": {whole}')
    texts[0] = "{" + texts[0].lstrip()
    texts[-1] += "}"
    return texts


def _masks(field: Field) -> str:
    if not isinstance(field, Waypoints):
        return MASK * field.tokens
    point = ",".join([MASK * field.width] * field.dim)
    return f"[[{'], ['.join([point] * field.count)}]]"


def _closes(field: Field) -> bool:
    return isinstance(field, Text) and field.closes


def _sections(schema: Schema, tokenizer: Tokenizer, tokens: torch.Tensor) -> torch.Tensor:
    """(n,) int64: the section in which a token's last character lies."""
    texts = _section_texts(schema)
    pieces = [tokenizer.decode([token]) for token in tokens.tolist()]
    if "".join(pieces) != "".join(texts):
        raise ValueError("the tokenizer does not give the template back, token by token")
    last = torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return torch.searchsorted(ends, last, right=True)
