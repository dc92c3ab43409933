"""What is written may be written over while its block is open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.commits.commit import Commit, confidence, leading

__all__ = ["JointThreshold"]


@dataclass(frozen=True)
class JointThreshold(Commit):
    """One threshold to write a slot, another to write it over (LLaDA2, as SGLang decodes it).

    In every pass a written slot takes another token that is sure enough; when all is written
    such passes go on until nothing changes, `rounds` at most. For checkpoints trained to correct
    themselves. Given slots never change.

    Attributes:
        threshold: to write, else the most confident one.
        edit_threshold: to write over; above 1 this is `Confidence(threshold)`.
        rounds: passes over a block that is full.
    """

    threshold: float = 0.5
    edit_threshold: float = 0.0
    rounds: int = 16

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds of edits are 0 or more, got {self.rounds}")

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        sure = confidence(logits, tokens, unwritten)
        return (leading(sure, 1) | (sure >= self.threshold)) & unwritten

    def passes(self, values: int) -> int | None:
        """It depends."""
        return None

    @property
    def edits(self) -> int:
        """None at a threshold that nothing reaches."""
        return self.rounds if self.edit_threshold <= 1 else 0

    def edit(
        self, logits: torch.Tensor, tokens: torch.Tensor, standing: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        everywhere = torch.ones_like(standing, dtype=torch.bool)
        return confidence(logits, tokens, everywhere) >= self.edit_threshold
