"""Several selectors' scores as one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastloop.policies.selectors.base import Candidates, Scores, Selector, masked_mean
from fastloop.policies.spec import PolicySpec

__all__ = ["Weighted"]


@dataclass(frozen=True)
class Weighted(Selector):
    """The weighted sum of scores, each first brought to mean 0 and deviation 1 over the candidates
    that may win, so that weights have no units. A selector that tells nothing apart adds nothing.

    Attributes:
        parts: selectors and their weights; one of weight 0 is not asked.

    Raises:
        ValueError: where none has a weight, or one is negative or not finite.
    """

    parts: tuple[tuple[Selector, float], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        weights = [weight for _, weight in self.parts]
        if not 0 < sum(weights) < math.inf or min(weights) < 0:
            raise ValueError(f"weights must be 0 or more, and one of them above 0, got {weights}")

    def check(self, spec: PolicySpec) -> None:
        """See `Selector.check`."""
        for selector, _ in self.parts:
            selector.check(spec)

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`."""
        asked = [(selector.score(candidates), weight) for selector, weight in self.parts if weight]
        allowed = candidates.allowed
        for scored, _ in asked:
            allowed = allowed & scored.values.isfinite()
        total = torch.stack(
            [weight * _standard(scored.values, allowed) for scored, weight in asked]
        )
        # One part that tells candidates apart is enough.
        told = zip(*(scored.reasons for scored, _ in asked), strict=True)
        reasons = tuple(row[0] if all(row) else "" for row in told)
        return Scores(total.sum(0).masked_fill(~allowed, torch.inf), reasons)


def _standard(values: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """`values` (B, N) with mean 0 and deviation 1 over those `allowed`, 0 elsewhere."""
    centered = values - masked_mean(values, allowed)[:, None]
    spread = masked_mean(centered.square(), allowed).sqrt().clamp(min=1e-300)
    return (centered / spread[:, None]).where(allowed, 0.0)
