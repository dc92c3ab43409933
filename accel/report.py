"""Proof of what an accelerator did in one plan, and the check that it did anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

__all__ = ["AccelReport", "AcceleratorIdleError"]

T = TypeVar("T", int, float)


class AcceleratorIdleError(RuntimeError):
    """An accelerator was configured and never engaged, so the run was silently slow."""


@dataclass(frozen=True)
class AccelReport:
    """What one plan (or, summed, one episode or run) computed and saved.

    Attributes:
        name: the accelerator, ``none`` for the policy as published.
        exact: whether the output equals the un-accelerated one to rounding.
        plans: number of plans that this report covers.
        network_evaluations: denoiser calls, cached or not (K a plan for DDPM).
        computed, reused: residual branches evaluated, and taken from the cache.
        shared: projections of time and condition taken from a table, or made once a chunk, by an
            accelerator that does nothing else.
        forked, drafted, accepted: branches of a shared prefix, tokens proposed and accepted.
        violations: times that a guarded forecast was wrong by more than it may be; a scalar tensor
            on the device until `settled`.
        host_syncs: times that the loop waited for a device value.
        frames_encoded, frames_remembered: observation frames that went through the encoder, and
            whose features were still there from an earlier plan.
        candidates: chunks that were drawn for each environment, where one was chosen of several.
        degraded: why a choice told nothing apart, to how many plans it happened in.
        replayed: plans whose whole chain was one CUDA graph, or each pass over whose text was one.
        not_replayed: why what was to be one was not, to how many plans it happened in.
        stage_ms: wall time a stage, in milliseconds; a GPU may still work when a stage has ended.
    """

    name: str = "none"
    exact: bool = True
    plans: int = 1
    network_evaluations: int = 0
    computed: int = 0
    reused: int = 0
    shared: int = 0
    forked: int = 0
    drafted: int = 0
    accepted: int = 0
    violations: int | torch.Tensor = 0
    host_syncs: int = 0
    frames_encoded: int = 0
    frames_remembered: int = 0
    candidates: int = 0
    degraded: dict[str, int] = field(default_factory=dict)
    replayed: int = 0
    not_replayed: dict[str, int] = field(default_factory=dict)
    stage_ms: dict[str, float] = field(default_factory=dict)

    @property
    def engagement(self) -> float:
        """Share of work that the accelerator saved, 0 to 1."""
        work = self.computed + self.reused + self.shared + self.drafted
        return (self.reused + self.shared + self.accepted) / work if work else 0.0

    def settled(self) -> AccelReport:
        """With plain numbers; waits for the device."""
        return replace(self, violations=int(self.violations))

    def check_engaged(self) -> AccelReport:
        """Return self, or raise when an accelerator was named and saved nothing.

        Raises:
            AcceleratorIdleError: at 0 % engagement.
        """
        if self.name != "none" and self.engagement == 0.0:
            raise AcceleratorIdleError(
                f"accelerator {self.name!r} is configured and engaged 0 % over {self.plans} plans: "
                f"{self.computed} branches computed, {self.reused} reused. Check its plan against "
                "the policy, or run with accel=none."
            )
        return self

    @classmethod
    def total(cls, reports: Iterable[AccelReport]) -> AccelReport:
        """Sum reports of one accelerator.

        Raises:
            ValueError: when `reports` is empty or mixes accelerators.
        """
        reports = list(reports)
        names = {(r.name, r.exact) for r in reports}
        if len(names) != 1:
            raise ValueError(f"can only sum reports of one accelerator, got {sorted(names)}")
        counts = {
            key: sum(getattr(r, key) for r in reports)
            for key in (
                "plans", "network_evaluations", "computed", "reused", "shared",
                "forked", "drafted", "accepted", "violations", "host_syncs",
                "frames_encoded", "frames_remembered", "candidates", "replayed",
            )
        }  # fmt: skip
        return cls(
            name=reports[0].name,
            exact=reports[0].exact,
            degraded=_sums(r.degraded for r in reports),
            not_replayed=_sums(r.not_replayed for r in reports),
            stage_ms=_sums(r.stage_ms for r in reports),
            **counts,
        )


def _sums(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    total: dict[str, T] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value
    return total
