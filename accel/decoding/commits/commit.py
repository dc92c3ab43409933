"""What every commit policy offers: which slots are written down after a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.model import ModelSpec

__all__ = ["Commit", "confidence", "leading"]


class Commit(ABC):
    """A pure function of what one pass says; all methods but two have a default.

    A policy that carries something from pass to pass gives, at the start of a block, an object of
    its own that does (`begin`); the policy itself stays a value without state.
    """

    @abstractmethod
    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """Which slots to write, (B, Q) bool: at least one of a row that has open ones.

        Args:
            logits: (B, Q, V), -inf where a token may not stand; of all slots of the block.
            tokens: (B, Q) int64, what would be written.
            unwritten: (B, Q) bool, slots that may be written.
        """

    @abstractmethod
    def passes(self, values: int) -> int | None:
        """How many passes `values` open slots take, None where that depends on the logits."""

    def begin(self, values: int) -> Commit:
        """What decides over one block, or one window, of which `values` slots are open."""
        return self

    def heard(self, logits: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
        """The logits (B, Q, V) by which tokens are chosen and judged; called once a pass."""
        return logits

    @property
    def edits(self) -> int:
        """How many passes may follow when all is written, that only alter what is (`edit`)."""
        return 0

    def edit(
        self, logits: torch.Tensor, tokens: torch.Tensor, standing: torch.Tensor
    ) -> torch.Tensor:
        """Which slots to write over, (B, Q) bool, in any pass; only asked where `edits` is not 0.

        Given slots, and those whose token would stay, are left alone whatever this says.

        Args:
            logits: (B, Q, V), as above.
            tokens: (B, Q) int64, what would be written.
            standing: (B, Q) int64, what is.
        """
        return torch.zeros_like(standing, dtype=torch.bool)

    def check(self, spec: ModelSpec, canvas: Canvas) -> None:  # noqa: B027 (most refuse nothing)
        """Refuse a model or a canvas that the policy is not made for, before the first pass.

        Raises:
            ValueError: with the reason.
        """


def confidence(logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
    """Probability (B, Q) of the tokens, -1 in slots that are not open."""
    probability = logits.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return probability.masked_fill(~unwritten, -1.0)


def leading(score: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` highest (B, Q) bool of each row, the leftmost of those that tie."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
