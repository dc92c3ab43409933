"""How far the rows of a batch have been read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.kv import KVCache

__all__ = ["Context"]


@dataclass
class Context:
    """What a model knows after reading: changed in place by whoever decodes on.

    Rows may have accepted different numbers of tokens: a slot that a row rejected stays in `kv` and
    is hidden from it for ever.

    Attributes:
        kv: keys and values of all B rows, `kv.length` slots each.
        visible: (B, kv.length) bool, which slots hold tokens of the row.
        position: (B,) int64, that of the next token.
        logits: (B, V) of the last token read, which speak of the next one.
        prompt: (B, P) int64, read again in each pass by a model whose regime lets nothing be kept
            (`kv` is empty then); None for all others.
        trunk: the row that these are branches of; None for rows of their own.
    """

    kv: KVCache
    visible: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor
    prompt: torch.Tensor | None = None
    trunk: Context | None = None

    def fork(self, rows: int) -> Context:
        """`rows` branches of a single row; the row itself stays as it is.

        Raises:
            ValueError: when there is more than one row, or nothing is kept.
        """
        return Context(
            self.kv.fork(rows),
            self.visible.expand(rows, -1).clone(),
            self.position.expand(rows).clone(),
            self.logits.expand(rows, -1).clone(),
            trunk=self,
        )
