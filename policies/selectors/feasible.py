"""A test that candidates must pass, whatever else they are chosen by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastloop.policies.selectors.base import Candidates, Scores, Selector
from fastloop.policies.spec import PolicySpec

__all__ = ["Feasible"]


@dataclass(frozen=True)
class Feasible(Selector):
    """Another selector's choice between the candidates that pass; between all where none does.

    Attributes:
        passes: of actions (B, N, T, A) in the environment's units, from now on, which a robot can
            execute: (B, N) bool.
        selector: what chooses between them; it sees the others as if they were not finite.
    """

    passes: Callable[[torch.Tensor], torch.Tensor]
    selector: Selector

    def check(self, spec: PolicySpec) -> None:
        """See `Selector.check`."""
        self.selector.check(spec)

    def score(self, candidates: Candidates) -> Scores:
        """See `Selector.score`.

        Raises:
            ValueError: not one answer a candidate.
        """
        passed = self.passes(candidates.actions).to(candidates.allowed.device)
        if passed.shape != candidates.allowed.shape or passed.dtype != torch.bool:
            raise ValueError(
                f"a test of {tuple(candidates.allowed.shape)} candidates must say yes or no to "
                f"each, got {passed.dtype} {tuple(passed.shape)}"
            )
        passed = passed & candidates.allowed
        some = passed.any(-1)
        allowed = torch.where(some[:, None], passed, candidates.allowed)
        scored = self.selector.score(candidates.only(allowed))
        reasons = tuple(
            reason if passing else "no candidate is feasible"
            for reason, passing in zip(scored.reasons, some.tolist(), strict=True)
        )
        return Scores(scored.values.masked_fill(~allowed, torch.inf), reasons)
