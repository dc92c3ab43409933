"""All that is sure enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence, leading

__all__ = ["Confidence"]


@dataclass(frozen=True)
class Confidence(Commit):
    """All slots whose confidence reaches the threshold, else the most confident one.

    Fast-dLLM (Wu et al. 2025). A threshold above 1 writes one slot a pass, one of 0 all of them.
    """

    threshold: float = 0.9

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        sure = confidence(logits, tokens, unwritten)
        return (leading(sure, 1) | (sure >= self.threshold)) & unwritten

    def passes(self, values: int) -> int | None:
        """One at a threshold that everything reaches, one a slot where nothing does."""
        if self.threshold <= 0:
            return min(values, 1)
        return values if self.threshold > 1 else None
