"""The candidate in the middle of the others."""

from __future__ import annotations

from dataclasses import dataclass

from fastloop.policies.selectors.base import Candidates, Scores, Selector, masked_mean

__all__ = ["Medoid"]


@dataclass(frozen=True)
class Medoid(Selector):
    """Mean distance to all candidates: of a crowd its middle, never a mean of two ways."""

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`."""
        future = candidates.future
        apart = (future[:, :, None] - future[:, None]).double().norm(dim=-1).mean(-1)  # (B, N, N)
        values = masked_mean(apart, candidates.allowed[:, None].expand_as(apart))
        return Scores.known(values, candidates.allowed.any(-1), "there is nothing to compare")
