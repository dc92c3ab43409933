"""What was measured of each arm, and which speed-ups may be shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastloop.accel.apply import stack_of
from fastloop.accel.flops import count_call, count_stack
from fastloop.bench.action_error import ActionError
from fastloop.bench.arms import BenchArm
from fastloop.bench.chunks import Chunks
from fastloop.bench.parity import Parity
from fastloop.sims.findings import Comparison
from fastloop.sims.stats import Interval

__all__ = ["ArmFindings", "Work", "measure_work", "metrics"]


@dataclass(frozen=True)
class Work:
    """What one chunk takes.

    Attributes:
        flops: floating-point operations of the network, two a multiply-add.
        reused: share of branch evaluations that are reused, 0 to 1.
        evaluations: steps at which the network, or any branch of it, is evaluated.
    """

    flops: int
    reused: float
    evaluations: int


def measure_work(arm: BenchArm, chunks: Chunks) -> Work:
    """Count the work of an arm's chunk from its plan; of a network as published, from a call."""
    noise, cond = chunks.inputs(arm.policy)
    timesteps = arm.policy.sampler.timesteps
    if arm.cached is None or arm.plan is None:
        _, once = count_call(arm.policy.model.denoise, noise[0], timesteps[0], cond)
        return Work(once * len(timesteps), 0.0, len(timesteps))
    stack = stack_of(arm.policy, arm.accel)  # without kernels, whose operations nobody counts
    flops = count_stack(stack, noise[0], cond).of(arm.plan)
    return Work(flops, arm.plan.reuse_fraction, int(arm.plan.mask().any(axis=1).sum()))


@dataclass(frozen=True)
class ArmFindings:
    """One arm; what was not measured is None or empty.

    Attributes:
        name, exact: as in `BenchArm`.
        work: of one chunk.
        parity: the gate; None for the policy as published, which is the reference.
        error: of its actions, likewise.
        latencies_ms: warm plans.
        replayed: whether its chain was one CUDA graph; None where it was not to be one.
        not_replayed: why it was none.
        speedup: over the policy as published, measured whether or not it may be shown.
        stages_ms: where the time of a plan goes.
        comparison: success in closed loop.
    """

    name: str
    exact: bool
    work: Work
    parity: Parity | None = None
    error: ActionError | None = None
    latencies_ms: Sequence[float] = ()
    replayed: bool | None = None
    not_replayed: str = ""
    speedup: Interval | None = None
    stages_ms: Mapping[str, float] | None = None
    comparison: Comparison | None = None

    @property
    def refused(self) -> str:
        """Why its speed-up may not be shown; empty when it may."""
        if self.parity is not None and not self.parity.holds:
            return "parity FAILED"
        if self.comparison is not None and self.comparison.verdict == "inferior":
            return "INFERIOR"
        return ""

    @property
    def shown_speedup(self) -> Interval | None:
        """The speed-up, where it may be shown."""
        return None if self.refused else self.speedup

    @property
    def success(self) -> str:
        """What is known of its success, in a word or three."""
        if self.parity is None:
            return "-"
        if self.comparison is not None:
            return self.comparison.verdict if self.comparison.difference.interval.n else "no pair"
        return "same answer" if self.exact else "success not tested"

    @property
    def p50_ms(self) -> float | None:
        """Median latency of a plan."""
        return statistics.median(self.latencies_ms) if self.latencies_ms else None


def metrics(arms: Sequence[ArmFindings], unit: str) -> dict[str, dict[str, Any]]:
    """The metrics of ``result.json``, the first arm being the policy as published.

    Named ``<quantity>_<arm>``; the operations of the policy as published are ``flops_dense``. What
    was not measured, or may not be shown, is null.

    Args:
        unit: of the environment's actions.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        name, work, shown = arm.name, arm.work, arm.shown_speedup
        p50 = None if arm.refused else arm.p50_ms
        found[f"latency_p50_{name}"] = _metric(p50, "ms", len(arm.latencies_ms))
        found[f"evaluations_{name}"] = _metric(work.evaluations, "1")
        if arm.parity is None:
            found["flops_dense"] = _metric(work.flops, "FLOP")
            continue
        found[f"flops_{name}"] = _metric(work.flops, "FLOP")
        found[f"reused_{name}"] = _metric(work.reused, "1")
        found[f"speedup_{name}"] = {"unit": "x"} | (asdict(shown) if shown else {})
        if arm.replayed is not None:
            found[f"replayed_{name}"] = _metric(float(arm.replayed), "1")
        found[f"parity_{name}"] = _metric(arm.parity.double, "normalized")
        found[f"parity_as_timed_{name}"] = _metric(arm.parity.as_timed, "normalized")
        if arm.error:
            for what, value, of in (
                ("mean", arm.error.mean, "normalized"),
                ("max", arm.error.largest, "normalized"),
                ("mean_in_units", arm.error.mean_in_units, unit),
                ("max_in_units", arm.error.largest_in_units, unit),
            ):
                found[f"action_error_{what}_{name}"] = _metric(value, of, arm.error.n)
        if arm.comparison:
            gap = asdict(arm.comparison.difference.interval)
            found[f"success_difference_{name}"] = {"unit": "fraction"} | gap
            for figure, mean in arm.comparison.figures.items():
                found[f"{figure}_difference_{name}"] = {"unit": ""} | asdict(mean)
    return found


def _metric(value: float | None, unit: str, n: int | None = None) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n}
