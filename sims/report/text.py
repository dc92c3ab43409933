"""How figures are written, alike in the console and in the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastloop.sims.findings import ArmFindings, Comparison, Findings
from fastloop.sims.predictability import Predictability
from fastloop.sims.stats import Interval

__all__ = [
    "LATENCY_HEAD",
    "SUCCESS_HEAD",
    "accel_facts",
    "difference_cell",
    "figure_head",
    "figure_rows",
    "latency_row",
    "milliseconds",
    "p_value",
    "percent",
    "points",
    "predictability_line",
    "success_row",
    "times",
]

SUCCESS_HEAD = (
    "policy", "success rate", "95% interval", "n", "success", "failure", "timeout", "error",
)  # fmt: skip
LATENCY_HEAD = ("policy", "p50", "p90", "p99", "max", "calls", "cold calls", "cold p50", "cold max")


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def points(value: float) -> str:
    """A signed difference of rates in percentage points."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def milliseconds(value: float) -> str:
    """Three significant digits, never an exponent."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def times(value: float) -> str:
    return f"{value:.2f}x"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def success_row(arm: ArmFindings) -> list[str]:
    """Cells under `SUCCESS_HEAD`."""
    counts = [str(arm.outcomes[o]) for o in ("success", "failure", "timeout", "error")]
    return [arm.name, *rate_cells(arm.success), *counts]


def rate_cells(rate: Interval) -> list[str]:
    """Value, interval and n of a success rate."""
    return [percent(rate.value), f"{percent(rate.low)} to {percent(rate.high)}", str(rate.n)]


def latency_row(arm: ArmFindings) -> list[str]:
    """Cells under `LATENCY_HEAD`."""
    t = arm.latency
    warm = [milliseconds(value) for value in (t.p50, t.p90, t.p99, t.max)]
    cold = [str(t.cold_n), milliseconds(t.cold_p50), milliseconds(t.cold_max)]
    return [arm.name, *warm, str(t.n), *cold]


def comparison_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """The paired comparison as names and values."""
    paired, interval = comparison.difference, comparison.difference.interval
    low, high = points(interval.low), points(interval.high)
    margin = f"{100 * comparison.margin:g} points"
    rows = [
        ("success difference", f"{points(interval.value)} points ({low} to {high})"),
        ("pairs", str(interval.n)),
        ("discordant pairs", f"{paired.gained} gained, {paired.lost} lost"),
        ("McNemar exact p", p_value(paired.p_value)),
        (f"non-inferiority at {margin}", comparison.verdict),
    ]
    if comparison.verdict == "inconclusive":
        rows.append(("still open", comparison.outlook()))
    if comparison.speedup:
        speed = comparison.speedup
        how = "interleaved pairs" if comparison.interleaved else "calls of the episodes"
        rows.append(
            (
                "speed-up",
                f"{times(speed.value)} ({speed.ends(unit='x')}), {speed.n} {how}",
            )
        )
    return rows


def figure_rows(findings: Findings) -> list[list[str]]:
    """What simulators say besides success: a row a figure, a column an arm, then a column of
    differences a comparison."""
    rows = []
    for name in dict.fromkeys(name for arm in findings.arms for name in arm.figures):
        means = [arm.figures.get(name) for arm in findings.arms]
        gaps = [comparison.figures.get(name) for comparison in findings.comparisons]
        rows.append([name, *map(_mean_cell, means), *map(difference_cell, gaps)])
    return rows


def figure_head(findings: Findings) -> list[str]:
    """The head of `figure_rows`."""
    arms = [arm.name for arm in findings.arms]
    gaps = [f"{c.candidate} - {c.baseline}" for c in findings.comparisons]
    return ["figure", *arms, *gaps]


def predictability_line(findings: Findings) -> str:
    """How far off actions are foretold from the two before, in one line; empty where unknown."""
    foretold = {arm.name: arm.predictability for arm in findings.arms if arm.predictability.n}
    told = [f"{name} {one.error:.3g}{_against(one)}" for name, one in foretold.items()]
    if not told:
        return ""
    expert = next(iter(foretold.values())).expert_error
    if not math.isnan(expert):
        told.append(f"demonstrations {expert:.3g}")
    return f"Error of an action foretold from the two before, of its variance: {'; '.join(told)}."


def _against(one: Predictability) -> str:
    return "" if math.isnan(one.ratio) else f" (predictability {one.ratio:.2f} of the expert's)"


def difference_cell(gap: Interval | None) -> str:
    """A mean difference with its interval, all signed."""
    return _mean_cell(gap, sign="+")


def _mean_cell(mean: Interval | None, sign: str = "") -> str:
    if mean is None or math.isnan(mean.value):
        return "-"
    value, low, high = (f"{end:{sign}.3g}" for end in (mean.value, mean.low, mean.high))
    return value if math.isnan(mean.low) else f"{value} ({low} to {high})"


def accel_facts(accel: Mapping[str, Any]) -> dict[str, str]:
    """An AccelReport's fields for people: engagement, counts a plan, and time a stage."""
    if not accel:
        return {}
    plans = max(1, accel.get("plans", 1))
    work = sum(accel.get(name, 0) for name in ("computed", "reused", "shared", "drafted"))
    saved = sum(accel.get(name, 0) for name in ("reused", "shared", "accepted"))
    facts = {
        "accelerator": str(accel.get("name", "none")),
        "output": "exact" if accel.get("exact") else "approximate",
        "plans": str(plans),
        "work saved": percent(saved / work) if work else "-",
    }
    always = ("network_evaluations", "computed", "reused")
    counts = {name: count for name, count in accel.items() if type(count) is int}
    for name, value in counts.items():
        if name != "plans" and (value or name in always):
            facts[f"{name.replace('_', ' ')} per plan"] = f"{value / plans:.5g}"
    for reason, count in accel.get("degraded", {}).items():
        facts[f"no choice: {reason}"] = f"{percent(count / plans)} of plans"
    for reason, count in accel.get("not_replayed", {}).items():
        facts[f"no graph: {reason}"] = f"{percent(count / plans)} of plans"
    for stage, ms in accel.get("stage_ms", {}).items():
        facts[f"{stage} per plan"] = milliseconds(ms / plans)
    return facts
