"""The candidate that a density finds likeliest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastloop.policies.selectors.base import Candidates, Scores, Selector

__all__ = ["Density"]


@dataclass(frozen=True)
class Density(Selector):
    """Score by minus the log-density, or any other value that should be high.

    Attributes:
        log_density: of every candidate: (B, N). It reads their `actions`, or `future`, and the
            `history`. A candidate whose value is not finite does not win.
    """

    log_density: Callable[[Candidates], torch.Tensor]

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`.

        Raises:
            ValueError: not one number a candidate.
        """
        values = -self.log_density(candidates).to(candidates.allowed.device).double()
        if values.shape != candidates.allowed.shape:
            raise ValueError(
                f"the log-density of {tuple(candidates.allowed.shape)} candidates has shape "
                f"{tuple(values.shape)}"
            )
        return Scores(values, ("",) * len(values))
