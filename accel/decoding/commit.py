"""Which slots of a block that is being denoised are written down after a pass.

Sources differ in ways that change the answer; here, once for all:

- confidence is the probability of the chosen token, entropy that of the slot, both after tokens
  that may not stand there have been taken out and before any temperature;
- `Confidence` compares with >= (Fast-dLLM v1; v2 and SGLang compare with >), and where no slot
  passes exactly one is written, the best (dInfer writes all that tie with it);
- ties go to the leftmost slot.

Every policy writes at least one slot of every row that has open ones, and none of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Commit", "Confidence", "EntropyBound", "FixedCount", "Sequential"]


class Commit(Protocol):
    """A pure function of what one pass says."""

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """Which slots to write, (B, Q) bool.

        Args:
            logits: (B, Q, V), -inf where a token may not stand.
            tokens: (B, Q) int64, what would be written.
            unwritten: (B, Q) bool, slots that may be written.
        """
        ...

    def passes(self, values: int) -> int | None:
        """How many passes `values` open slots take, None where that depends on the logits."""
        ...


@dataclass(frozen=True)
class Confidence:
    """All slots whose confidence reaches the threshold, else the most confident one.

    Fast-dLLM (Wu et al. 2025). A threshold above 1 writes one slot a pass, one of 0 all of them.
    """

    threshold: float = 0.9

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        confidence = _confidence(logits, tokens, unwritten)
        return _leading(confidence, 1) & unwritten | (confidence >= self.threshold) & unwritten

    def passes(self, values: int) -> int | None:
        """One at a threshold that everything reaches, one a slot where nothing does."""
        if self.threshold <= 0:
            return min(values, 1)
        return values if self.threshold > 1 else None


@dataclass(frozen=True)
class FixedCount:
    """The `count` most confident slots of each pass (LLaDA's low-confidence remasking)."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"each pass writes at least one slot, got {self.count}")

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return _leading(_confidence(logits, tokens, unwritten), self.count) & unwritten

    def passes(self, values: int) -> int | None:
        """A quotient, rounded up."""
        return -(-values // self.count)


@dataclass(frozen=True)
class EntropyBound:
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


@dataclass(frozen=True)
class Sequential:
    """One slot a pass, from left to right."""

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        return unwritten & (unwritten.cumsum(1) == 1)

    def passes(self, values: int) -> int | None:
        """One a slot."""
        return values


def _confidence(
    logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
) -> torch.Tensor:
    """Probability (B, Q) of the tokens, -1 in slots that are not open."""
    probability = logits.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return probability.masked_fill(~unwritten, -1.0)


def _leading(score: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` highest of each row, the leftmost of those that tie."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
