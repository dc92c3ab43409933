"""How a chunk of planned actions is executed, counted in ticks that really passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

__all__ = ["Chunk", "Chunking", "RecedingHorizon", "TemporalEnsemble"]


class Chunk(Protocol):
    """The actions in execution of one environment."""

    def install(self, actions: torch.Tensor, *, late: int = 0) -> None:
        """Take over a new plan of actions (T, A), whose first `late` ticks have already passed."""
        ...

    def due(self) -> bool:
        """Whether a new plan is needed before the next action."""
        ...

    def next(self) -> torch.Tensor:
        """The action (A,) of this tick, consumed."""
        ...

    def ahead(self, actions: torch.Tensor) -> torch.Tensor:
        """What would be executed in the next T ticks if `actions` (T, A) were installed."""
        ...


class Chunking(Protocol):
    """A strategy: makes the empty chunk of an episode that begins."""

    def start(self) -> Chunk: ...


def _held(last: torch.Tensor | None) -> torch.Tensor:
    """An exhausted chunk holds its last action: zeros would pull the arm to the dataset's mean."""
    if last is None:
        raise RuntimeError("an action was asked for before the episode's first plan")
    return last


@dataclass
class _Receding:
    n_action_steps: int
    queue: list[torch.Tensor] = field(default_factory=list)
    tail: list[torch.Tensor] = field(default_factory=list)
    last: torch.Tensor | None = None

    def install(self, actions: torch.Tensor, *, late: int = 0) -> None:
        end = max(self.n_action_steps, late + 1)
        self.queue, self.tail = list(actions[late:end]), list(actions[end:])

    def due(self) -> bool:
        return not self.queue

    def next(self) -> torch.Tensor:
        # While the next plan is late, the rest of this one is better than standing still.
        ahead = self.queue or self.tail
        if ahead:
            self.last = ahead.pop(0)
        return _held(self.last)

    def ahead(self, actions: torch.Tensor) -> torch.Tensor:
        return actions


@dataclass(frozen=True)
class RecedingHorizon:
    """Execute the first `n_action_steps` of each plan, then plan again (Chi et al. 2023).

    While the next plan is late, the actions beyond are executed, then the last one is held.
    """

    n_action_steps: int

    def start(self) -> Chunk:
        """An empty chunk."""
        return _Receding(self.n_action_steps)


@dataclass
class _Ensemble:
    decay: float
    plans: list[list[torch.Tensor]] = field(default_factory=list)
    fresh: bool = False
    last: torch.Tensor | None = None

    def install(self, actions: torch.Tensor, *, late: int = 0) -> None:
        self.plans.append(list(actions[late:]))
        self.fresh = True

    def due(self) -> bool:
        return not self.fresh

    def next(self) -> torch.Tensor:
        self.plans = [plan for plan in self.plans if plan]
        self.fresh = False
        if self.plans:
            votes = torch.stack([plan.pop(0) for plan in self.plans])
            weights = torch.exp(-self.decay * torch.arange(len(votes), dtype=votes.dtype))
            self.last = (weights[:, None] * votes).sum(0) / weights.sum()
        return _held(self.last)

    def ahead(self, actions: torch.Tensor) -> torch.Tensor:
        chunk = _Ensemble(self.decay, [list(plan) for plan in self.plans])
        chunk.install(actions)
        return torch.stack([chunk.next() for _ in actions])


@dataclass(frozen=True)
class TemporalEnsemble:
    """Plan every tick and average what all live plans say of it, oldest first (Zhao et al. 2023).

    Attributes:
        decay: weight of the i-th oldest plan is exp(-decay * i).
    """

    decay: float = 0.01

    def start(self) -> Chunk:
        """An empty chunk."""
        return _Ensemble(self.decay)
