"""So many a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence, leading

__all__ = ["FixedCount"]


@dataclass(frozen=True)
class FixedCount(Commit):
    """The `count` most confident slots of each pass (LLaDA's low-confidence remasking)."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"each pass writes at least one slot, got {self.count}")

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return leading(confidence(logits, tokens, unwritten), self.count) & unwritten

    def passes(self, values: int) -> int | None:
        """A quotient, rounded up."""
        return -(-values // self.count)
