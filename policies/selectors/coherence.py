"""Backward coherence: the candidate that goes on with the plan under way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.policies.selectors.base import Candidates, Scores, Selector

__all__ = ["Coherence"]


@dataclass(frozen=True)
class Coherence(Selector):
    """BID's backward coherence (Liu et al. 2024): distance to what the last plan says of the same
    ticks, sum of rho^i |a_i - b_i| over the i-th tick from now.

    Attributes:
        rho: above 0 and up to 1; 0.5 as published.

    Raises:
        ValueError: for another rho.
    """

    rho: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho must be above 0 and up to 1, got {self.rho}")

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`."""
        values = self.distance(candidates, candidates.future)
        usable = candidates.planned.any(-1)
        return Scores.known(values, usable, "no plan is under way")

    def distance(self, candidates: Candidates, future: torch.Tensor) -> torch.Tensor:
        """Of comparable actions (B, M, T, A) to the plan under way: (B, M); 0 where there is
        none."""
        apart = (future - candidates.previous[:, None]).double().norm(dim=-1)  # (B, M, T)
        ticks = torch.arange(apart.shape[-1], device=apart.device)
        apart = apart.where(candidates.planned[:, None], 0.0)
        return (apart * self.rho ** ticks.double()).sum(-1)
