"""Forward contrast: near to what good samples have in common, far from what weak ones have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.selectors.base import Candidates, Scores, Selector, masked_mean
from fastloop.policies.selectors.coherence import Coherence

__all__ = ["Contrast"]

Weak = Callable[[History, Rng], torch.Tensor]


@dataclass(frozen=True)
class Contrast(Selector):
    """BID's forward contrast (Liu et al. 2024): mean distance to the better half of the candidates,
    less that to the better half of a weaker policy's. Better is nearer to the plan under way; where
    there is none, all count.

    The whole of BID is ``Weighted([(Coherence(), 1), (Contrast(weak), 1)])``.

    Attributes:
        weak: draws from a weaker policy, such as an earlier checkpoint, for the same history and
            keys of noise: (B, M, T, A) in the environment's units, from now on; T and A as of the
            candidates.
        coherence: what is nearer.
    """

    weak: Weak
    coherence: Coherence = field(default_factory=Coherence)

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`.

        Raises:
            ValueError: the weaker policy plans actions of another shape.
        """
        drawn = self.weak(candidates.history, candidates.rng).to(candidates.future)
        batch, _, *shape = candidates.future.shape
        if drawn.ndim != 4 or [drawn.shape[0], *drawn.shape[2:]] != [batch, *shape]:
            raise ValueError(
                f"the weaker policy's samples must be ({batch}, M, {shape[0]}, {shape[1]}), got "
                f"{tuple(drawn.shape)}"
            )
        weak = candidates.compare(drawn)
        finite = weak.isfinite().all(-1).all(-1)
        weak = weak.where(finite[..., None, None], 0.0)
        values = self._distance(candidates, candidates.future, candidates.allowed)
        values = values - self._distance(candidates, weak, finite)
        usable = candidates.allowed.any(-1) & finite.any(-1)
        return Scores.known(values, usable, "there is nothing to contrast")

    def _distance(
        self, candidates: Candidates, others: torch.Tensor, finite: torch.Tensor
    ) -> torch.Tensor:
        """Mean distance (B, N) of every candidate to the better half of `others` (B, M, T, A)."""
        apart = (candidates.future[:, :, None] - others[:, None]).double().norm(dim=-1).mean(-1)
        from_plan = self.coherence.distance(candidates, others).masked_fill(~finite, torch.inf)
        half = (finite.sum(-1, keepdim=True) + 1) // 2
        limit = from_plan.sort(-1).values.gather(-1, (half - 1).clamp(min=0))
        return masked_mean(apart, (finite & (from_plan <= limit))[:, None].expand_as(apart))
