"""Cross-entropy of many tokens over a large vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

__all__ = ["chunked_cross_entropy"]


def chunked_cross_entropy(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    chunk: int = 256,
) -> torch.Tensor:
    """Weighted sum of cross-entropies; never more than `chunk` rows of logits exist at once.

    The logits are made again in the backward pass. With 152 thousand tokens of vocabulary, those of
    a few thousand rows would else be the largest thing in memory.

    Args:
        hidden: (N, D).
        head: from (n, D) to logits (n, V).
        targets: (N,) int64.
        weights: (N,), of each row; 1 where it is None.
        chunk: rows at a time.

    Returns:
        scalar, float32 or wider; 0 with gradients of 0 where N is 0.
    """

    def part(rows: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = head(rows)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (cross_entropy(wide, wanted, reduction="none") * scale).sum()

    if weights is None:
        weights = torch.ones_like(targets, dtype=torch.promote_types(hidden.dtype, torch.float32))
    total = hidden[:0].sum()  # has gradients even where nothing is summed
    for rows, wanted, scale in zip(
        hidden.split(chunk), targets.split(chunk), weights.split(chunk), strict=True
    ):
        total = total + checkpoint(part, rows, wanted, scale, use_reentrant=False)
    return total
