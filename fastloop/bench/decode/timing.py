"""How long plans take, from the observation to the waypoints, the arms taking turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from fastloop.accel.graph import recording
from fastloop.bench.decode.arms import DecodeArm
from fastloop.bench.decode.moments import Moment
from fastloop.policies.base import Plan
from fastloop.policies.rng import Rng
from fastloop.sims.stats import LatencySummary, latency_summary

__all__ = ["Timed", "time_in_turns"]

BEFORE = ("prompt", "prefill")  # stages of a plan before the first pass over its answer


@dataclass(frozen=True)
class Timed:
    """Plans of one arm.

    Attributes:
        cold_ms: its first plan, which is not among the others.
        plan_ms: wall time of each.
        plans: what was planned.
    """

    cold_ms: float
    plan_ms: list[float] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    @property
    def latency(self) -> LatencySummary:
        """Percentiles."""
        cold = [True] + [False] * len(self.plan_ms)
        return latency_summary([self.cold_ms, *self.plan_ms], cold)

    @property
    def stages_ms(self) -> Mapping[str, float]:
        """Mean milliseconds of each stage: `prompt` (pictures and words into tokens), `prefill`
        (the pass over them), each phase of decoding, and `rest`: choosing tokens, and Python."""
        totals: dict[str, float] = {}
        for plan in self.plans:
            for stage, ms in plan.report.stage_ms.items():
                totals[stage] = totals.get(stage, 0.0) + ms
        means = {stage: total / len(self.plans) for stage, total in totals.items()}
        return {**means, "rest": sum(self.plan_ms) / len(self.plan_ms) - sum(means.values())}

    @property
    def ms_per_forward(self) -> float:
        """Mean milliseconds of a pass over an answer; that over the prompt is not among them."""
        spent = sum(ms for stage, ms in self.stages_ms.items() if stage not in (*BEFORE, "rest"))
        passes = sum(plan.report.network_evaluations - 1 for plan in self.plans)
        return spent * len(self.plans) / passes if passes else float("nan")


def time_in_turns(
    arms: Sequence[DecodeArm],
    moments: Sequence[Moment],
    repeats: int,
    seed: int,
    advance: Callable[[int, str], None],
) -> dict[str, Timed]:
    """Wall time of whole plans, `repeats` at every moment; a turn is one moment for every arm.

    Each turn begins with another arm. Noise is the same in every repetition.

    Args:
        arms: what plans.
        moments: at which.
        repeats: times over all of them.
        seed: of the noise.
        advance: called with the number of turns that are done.
    """
    with recording():
        timed = {arm.name: Timed(_plan(arm, moments[0], seed)[0]) for arm in arms}
    for turn in range(repeats * len(moments)):
        advance(turn, "")
        first = turn % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            ms, plan = _plan(arm, moments[turn % len(moments)], seed)
            timed[arm.name].plan_ms.append(ms)
            timed[arm.name].plans.append(plan)
    advance(repeats * len(moments), "")
    return timed


def _plan(arm: DecodeArm, moment: Moment, seed: int) -> tuple[float, Plan]:
    rng = Rng.for_envs(seed, [moment.episode], moment.history.ticks.tolist())
    started = perf_counter()
    plan = arm.planner.plan(moment.history, rng=rng)
    return 1e3 * (perf_counter() - started), plan
