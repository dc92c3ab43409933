"""Tokenizers in which some tokens go by other names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastloop.policies.vla.tokenizer import Tokenizer

__all__ = ["Renamed"]


class Renamed:
    """A `Tokenizer` that reads some texts as ids that it is told, and writes these as those texts.

    So that a model whose mask is ``<|mdm_mask|>`` (LLaDA) writes the canvases that others write.

    Args:
        tokenizer: for all other text; a name cuts it in two.
        names: text to id; ids may be negative, of places that are no tokens.

    Raises:
        ValueError: for two names of one id, or an empty one.
    """

    def __init__(self, tokenizer: Tokenizer, names: Mapping[str, int]) -> None:
        if len(set(names.values())) < len(names) or not all(names):
            raise ValueError(f"each name stands for an id of its own, got {dict(names)}")
        self.tokenizer, self.names = tokenizer, dict(names)
        self._texts = {token: text for text, token in names.items()}
        self._cut = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added."""
        ids: list[int] = []
        start = 0
        for found in self._cut.finditer(text):
            ids += self._plain(text[start : found.start()])
            ids.append(self.names[found[0]])
            start = found.end()
        return ids + self._plain(text[start:])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text, start = "", 0
        for place, token in enumerate(ids):
            if token in self._texts:
                text += self._written(ids[start:place]) + self._texts[token]
                start = place + 1
        return text + self._written(ids[start:])

    def __len__(self) -> int:
        return len(self.tokenizer)

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text) if text else []

    def _written(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids) if len(ids) else ""
