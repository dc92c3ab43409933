"""From left to right."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit

__all__ = ["Sequential"]


@dataclass(frozen=True)
class Sequential(Commit):
    """One slot a pass, from left to right."""

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return unwritten & (unwritten.cumsum(1) == 1)

    def passes(self, values: int) -> int | None:
        """One a slot."""
        return values
