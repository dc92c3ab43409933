"""Tokens that were the likeliest for some passes are believed sooner."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.commits.commit import Commit
from fastloop.accel.decoding.commits.confidence import Confidence
from fastloop.accel.decoding.model import ModelSpec

__all__ = ["Credit"]


class _Around(Commit):
    """What another policy says."""

    commit: Commit

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return self.commit(logits, tokens, unwritten)

    def passes(self, values: int) -> int | None:
        """See `Commit`."""
        return self.commit.passes(values)

    @property
    def edits(self) -> int:
        """See `Commit`."""
        return self.commit.edits

    def edit(
        self, logits: torch.Tensor, tokens: torch.Tensor, standing: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return self.commit.edit(logits, tokens, standing)

    def check(self, spec: ModelSpec, canvas: Canvas) -> None:
        """See `Commit`."""
        self.commit.check(spec, canvas)


@dataclass(frozen=True)
class Credit(_Around):
    """Another policy, over logits to which the credit is added that tokens earned in a block.

    CreditDecoding (Wang et al. 2025), as in dInfer: in each pass the credit of all tokens falls,
    then the likeliest of each open slot earns probability ** power, and
    weight * log(1 + credit) is added to the logits by which tokens are chosen and judged. Holds
    (B, Q, V) of a block in memory.

    Attributes:
        commit: the other policy.
        weight: of the credit; 0 leaves the other policy as it is.
        decay: share of the credit that is left after a pass.
        power: below 1 it lifts what is unsure.

    Raises:
        ValueError: for a weight or a power below 0, or a decay beyond 0 to 1.
    """

    commit: Commit = field(default_factory=Confidence)
    weight: float = 0.7
    decay: float = 0.8
    power: float = 0.2

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and 0 <= self.decay <= 1 and self.power >= 0):
            raise ValueError(
                "weight and power are 0 or more and decay is between 0 and 1, got "
                f"{self.weight}, {self.power} and {self.decay}"
            )

    def begin(self, values: int) -> Commit:
        """Nobody has earned anything."""
        return _Account(self, self.commit.begin(values))


class _Account(_Around):
    """What was earned in one block."""

    def __init__(self, terms: Credit, commit: Commit) -> None:
        self.terms, self.commit = terms, commit
        self.credit: torch.Tensor | None = None

    def heard(self, logits: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
        """See `Commit`."""
        logits = self.commit.heard(logits, unwritten)
        likeliest, token = logits.softmax(-1).max(-1, keepdim=True)
        earned = torch.where(unwritten[..., None], likeliest**self.terms.power, 0)
        before = torch.zeros_like(logits) if self.credit is None else self.credit
        self.credit = (self.terms.decay * before).scatter_add(-1, token, earned)
        return logits + self.terms.weight * self.credit.log1p()
