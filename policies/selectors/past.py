"""Self-verification: the candidate that best remembers what was really done."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.policies.selectors.base import Candidates, Scores, Selector
from fastloop.policies.spec import PolicySpec

__all__ = ["PastConsistency"]

WARM_UPS = ("single", "partial")


@dataclass(frozen=True)
class PastConsistency(Selector):
    """PTP's self-verification (Torne et al. 2025): mean squared error of the predicted past.

    Every predicted action is compared with the one that was executed at its own lag, whatever the
    distance of a policy's frames. Elements that somebody else decided do not count.

    Attributes:
        decay: weight of the action before, for each one that lies nearer; 1 weighs all alike, as
            published.
        warm_up: ``single`` chooses nothing until all of the past has happened, as published;
            ``partial`` compares what has.

    Raises:
        ValueError: a decay outside of 0 to 1, or an unknown warm-up.
    """

    decay: float = 1.0
    warm_up: str = "single"

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and up to 1, got {self.decay}")
        if self.warm_up not in WARM_UPS:
            raise ValueError(
                f"unknown warm-up {self.warm_up!r}; choose one of {', '.join(WARM_UPS)}"
            )

    def check(self, spec: PolicySpec) -> None:
        """See `Selector.check`."""
        if spec.n_obs_steps < 2:
            raise ValueError(
                "selector past compares the past that a policy predicts, and this one reads 1 "
                "observation and predicts none; choose another selector"
            )

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`."""
        executed = candidates.executed
        counted = executed.known[..., None] & ~executed.overridden & executed.actions.isfinite()
        lags = torch.tensor(candidates.lags, device=counted.device)
        newness = torch.arange(len(lags) - 1, -1, -1, device=lags.device)
        weights = counted * (self.decay ** newness.double())[:, None]  # (B, O-1, A)
        total = weights.sum((-2, -1))
        error = (candidates.past - executed.actions[:, None]).double().square()
        error = error.where(counted[:, None], 0.0)
        values = (error * weights[:, None]).sum((-2, -1)) / total.clamp(min=1e-300)[:, None]
        usable = total > 0
        if self.warm_up == "single":
            usable &= executed.known.all(-1)
        return Scores.known(values, usable, "its past is not known yet")
