"""What was measured of each arm, and which figures may be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastloop.bench.decode.arms import DecodeArm
from fastloop.bench.decode.gates import Gate
from fastloop.bench.decode.timing import Timed
from fastloop.bench.decode.validity import Validity
from fastloop.bench.decode.work import Work
from fastloop.sims.stats import Interval

__all__ = ["HEADLINE", "DecodeFindings", "metrics"]

HEADLINE = "scaffold_speculative"  # the arm that the metrics without an arm's name are of
FORKS = ("fork4", "fork8")


@dataclass(frozen=True)
class DecodeFindings:
    """One arm; what was not measured is None or empty.

    Attributes:
        arm: what it is.
        work: of its answers.
        gates: what was compared.
        valid: how many answers can be read.
        violations: given slots that hold something else.
        agreement: share of the tokens that were not given that are those of the first arm.
        alike: share of timed plans whose text is that of the first arm.
        timed: its plans.
        speedup: over the first arm, plain token by token.
        fewer_forwards: passes of jump-forward, or else of the first arm, over its own.
        time_ratio: of forks: time over that of one answer.
        errors: horizon in seconds to the mean displacement from the expert, m.
        gaps: horizon to the mean difference from the arm `against`, m.
        against: name of the arm that errors are compared with.
    """

    arm: DecodeArm
    work: Work
    gates: tuple[Gate, ...]
    valid: Validity
    violations: int
    agreement: Interval | None = None
    alike: float | None = None
    timed: Timed | None = None
    speedup: Interval | None = None
    fewer_forwards: Interval | None = None
    time_ratio: Interval | None = None
    errors: Mapping[int, Interval] = field(default_factory=dict)
    gaps: Mapping[int, Interval] = field(default_factory=dict)
    against: str = ""

    @property
    def name(self) -> str:
        """The arm's."""
        return self.arm.name

    @property
    def refused(self) -> str:
        """Why nothing of its speed may be shown; empty when it may."""
        return "" if all(gate.holds for gate in self.gates) else "parity FAILED"

    @property
    def answer(self) -> str:
        """What its answers are, in a word or three."""
        if self.refused:
            return self.refused
        return "same answer" if self.arm.exact else "not exact"


def metrics(arms: Sequence[DecodeFindings]) -> dict[str, dict[str, Any]]:
    """The metrics of ``result.json``.

    Named ``<quantity>_<arm>``; those of `HEADLINE` also without an arm's name. What was not
    measured, or may not be shown, is null.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in arms:
        found |= {f"{key}_{one.name}": metric for key, metric in _quantities(one).items()}
        if one.arm.forks:
            found[f"{one.name}_time_ratio"] = _interval(one, one.time_ratio, "x")
    headline = {
        "tokens_per_forward": "tokens_per_forward",
        "value_tokens_per_forward": "value_tokens_per_forward",
        "forwards_ratio_vs_jump_forward_ar": "forwards_ratio",
        "wall_ratio_vs_ar": "speedup",
        "json_validity": "json_validity",
    }
    shown = [one.name for one in arms if one.name == HEADLINE and not one.refused]
    for name, quantity in headline.items():
        found[name] = found[f"{quantity}_{HEADLINE}"] if shown else {}
    return {f"{fork}_time_ratio": {} for fork in FORKS} | found


def _quantities(one: DecodeFindings) -> dict[str, dict[str, Any]]:
    work, wrong = one.work, sum(gate.wrong for gate in one.gates)
    found = {
        "tokens_per_forward": _interval(one, work.tokens_per_forward, "1"),
        "value_tokens_per_forward": _interval(one, work.values_per_forward, "1"),
        "forwards": _measured(work.forwards, "1"),
        **{f"forwards_{phase}": _plain(count, "1") for phase, count in work.phases.items()},
        "forwards_ratio": _interval(one, one.fewer_forwards, "x"),
        "tokens_fed": _measured(work.tokens_fed, "1"),
        "agreement": _measured(one.agreement, "fraction"),
        "accepted_per_cycle": _plain(work.accepted, "1", work.cycles.total()),
        "host_syncs": _plain(work.host_syncs, "1"),
        "kv_bytes": _plain(work.kv_bytes, "B"),
        "json_validity": _measured(one.valid.json, "fraction"),
        "schema_validity": _measured(one.valid.schema, "fraction"),
        "given_violations": _plain(one.violations, "1"),
        "parity": _plain(wrong, "answers", sum(gate.compared for gate in one.gates)),
        "alike": _plain(one.alike, "fraction"),
        "speedup": _interval(one, one.speedup, "x"),
    }
    for seconds, error in one.errors.items():
        found[f"ade_{seconds}s"] = _measured(error, "m")
    for seconds, gap in one.gaps.items():
        found[f"ade_{seconds}s_difference"] = _measured(gap, "m")
    if one.timed and not one.refused:
        latency, stages = one.timed.latency, one.timed.stages_ms
        for name in ("p50", "p90", "p99"):
            found[f"latency_{name}"] = _plain(getattr(latency, name), "ms", latency.n)
        found["latency_cold"] = _plain(latency.cold_max, "ms", latency.cold_n)
        found["ms_per_forward"] = _plain(one.timed.ms_per_forward, "ms", latency.n)
        for stage, ms in stages.items():
            found[f"stage_{stage}"] = _plain(ms, "ms", latency.n)
    return found


def _interval(one: DecodeFindings, interval: Interval | None, unit: str) -> dict[str, Any]:
    """A figure of speed, null where it may not be shown."""
    return {"unit": unit} if one.refused else _measured(interval, unit)


def _measured(interval: Interval | None, unit: str) -> dict[str, Any]:
    found = asdict(interval) if interval else {}
    return {"unit": unit} | {key: _number(value) for key, value in found.items()}


def _plain(value: float | None, unit: str, n: int | None = None) -> dict[str, Any]:
    return {"value": _number(value), "unit": unit, "n": n}


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or math.isnan(value) else value
