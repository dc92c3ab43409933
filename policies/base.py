"""The contract: a policy is a pure function from a history of observations to a plan of actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from fastloop.accel.report import AccelReport
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec

__all__ = ["Budget", "Plan", "Policy"]


@dataclass(frozen=True)
class Budget:
    """What one plan may cost.

    Attributes:
        deadline_s: seconds from the call until the plan is needed.
    """

    deadline_s: float


@dataclass(frozen=True)
class Plan:
    """What a policy decided for B environments.

    Attributes:
        actions: (B, T, A) float32 in the environment's units; the first is for the tick of the
            newest observation.
        dt: seconds between two actions.
        t0: (B,) int64 tick of the first action of each environment.
        past_actions: (B, O-1, A) what the policy believes it did before, when it predicts it.
        log_prob: (B,) log density of the plan, when known.
        text: B strings, for policies that write.
        candidates: (B, N, T, A) alternatives that were considered.
        chosen: (B,) int64, which of them the actions are.
        scores: (B, N) by which it was chosen; the lowest wins.
        report: what the accelerator did.
        reports: one an environment, where they differ.
    """

    actions: torch.Tensor
    dt: float
    t0: torch.Tensor
    past_actions: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None
    text: tuple[str, ...] | None = None
    candidates: torch.Tensor | None = None
    chosen: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    report: AccelReport = field(default_factory=AccelReport)
    reports: tuple[AccelReport, ...] = ()

    def report_of(self, row: int) -> AccelReport:
        """What the accelerator did for one environment."""
        return self.reports[row] if self.reports else self.report


@runtime_checkable
class Policy(Protocol):
    """Anything that decides. It keeps no state between calls: that is what makes batching over
    environments, forking, replay and resume the same code."""

    spec: PolicySpec

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Decide for the B environments of `history`, with noise from `rng` (B keys)."""
        ...
