"""As many as keep the joint error small."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit

__all__ = ["EntropyBound"]


@dataclass(frozen=True)
class EntropyBound(Commit):
    """As many slots, the surest first, as keep their joint error small.

    EB-Sampler (Ben-Hamu et al. 2025): the sum of the entropies of what is written, less the
    largest of them, is at most `bound` (nats).
    """

    bound: float = 0.1

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)
        entropy = entropy.masked_fill(~unwritten, float("inf"))
        ascending, order = entropy.sort(dim=1, stable=True)
        before = ascending.cumsum(1) - ascending
        # The first stands whatever its entropy; inf - inf of slots not open compares as False.
        enough = before <= self.bound
        enough[:, :1] = True
        return torch.zeros_like(unwritten).scatter(1, order, enough) & unwritten

    def passes(self, values: int) -> int | None:
        """It depends."""
        return None
