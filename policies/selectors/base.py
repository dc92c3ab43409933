"""What chooses between candidates, and what it sees of them."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fastloop.policies.history import Executed, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec

__all__ = [
    "Candidates",
    "Scores",
    "Selection",
    "Selector",
    "masked_mean",
    "select",
]


@dataclass(frozen=True)
class Candidates:
    """N chunks for each of B environments, and what they are judged by.

    Actions are compared in the network's normalized units; those of a cumulative policy, whose
    network sees only the steps between them, in the units of the action.

    Attributes:
        actions: (B, N, T, A) from now on, in the environment's units.
        future: (B, N, T, A) the same, comparable.
        past: (B, N, O-1, A) what each believes was done at `lags`, comparable.
        allowed: (B, N) who may win: finite, and passed by whatever was asked before.
        executed: (B, O-1, A) what was done at `lags`, comparable.
        previous: (B, T, A) what the plan under way says of the same ticks, comparable.
        planned: (B, T) whether it says anything.
        lags: O-1 ticks back, oldest first.
        history, rng: that the candidates were drawn from, for who draws others.
        compare: makes (B, M, T, A) actions in the environment's units comparable.
    """

    actions: torch.Tensor
    future: torch.Tensor
    past: torch.Tensor
    allowed: torch.Tensor
    executed: Executed
    previous: torch.Tensor
    planned: torch.Tensor
    lags: tuple[int, ...]
    history: History
    rng: Rng
    compare: Callable[[torch.Tensor], torch.Tensor]

    def only(self, allowed: torch.Tensor) -> Candidates:
        """The same, of which only those may win that are `allowed` (B, N)."""
        return replace(self, allowed=allowed)


@dataclass(frozen=True)
class Scores:
    """How bad candidates are.

    Attributes:
        values: (B, N) float64, lower is better; infinite for who must not win.
        reasons: B strings: why a row's candidates cannot be told apart as they should be, empty
            where they are.
    """

    values: torch.Tensor
    reasons: tuple[str, ...]

    @classmethod
    def known(cls, values: torch.Tensor, usable: torch.Tensor, reason: str) -> Scores:
        """`values` (B, N) where a row is `usable` (B,), equal ones and `reason` elsewhere."""
        values = torch.where(usable[:, None], values.double(), 0.0)
        return cls(values, tuple("" if known else reason for known in usable.tolist()))


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        index: (B,) int64.
        scores: (B, N) float64, infinite for candidates that could not win.
        reasons: B strings: why a choice fell back, empty where it did not.
    """

    index: torch.Tensor
    scores: torch.Tensor
    reasons: tuple[str, ...]


class Selector(abc.ABC):
    """Tells candidates apart. It keeps nothing between calls."""

    @abc.abstractmethod
    def score(self, candidates: Candidates) -> Scores:
        """Score every candidate by itself: the order in which they come does not matter."""

    def check(self, spec: PolicySpec) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse a policy of which this selector could never tell candidates apart.

        Raises:
            ValueError: saying why.
        """


def select(selector: Selector, candidates: Candidates) -> Selection:
    """The candidate of the lowest score in each environment, of equal ones the first.

    Who is not finite never wins; where nobody is, or nothing tells candidates apart, it is the
    first that may.
    """
    scored = selector.score(candidates)
    allowed = candidates.allowed & scored.values.isfinite()
    values = scored.values.masked_fill(~allowed, torch.inf)
    reasons = tuple(
        reason if some else "no candidate is finite"
        for reason, some in zip(scored.reasons, allowed.any(-1).tolist(), strict=True)
    )
    return Selection(values.argmin(-1), values, reasons)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the last axis of what `mask` lets through, 0 where it lets through nothing.

    Summed from the smallest on, so that it is the same in whatever order candidates come.
    """
    return values.where(mask, 0.0).sort(-1).values.sum(-1) / mask.sum(-1).clamp(min=1)
