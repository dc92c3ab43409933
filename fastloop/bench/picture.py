"""The bench's two pictures as inline SVG: speed over action error, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastloop.bench.findings import ArmFindings
from fastloop.sims.report.charts import log_ticks
from fastloop.sims.report.markup import Html, element

__all__ = ["GROUPS", "KNOWN", "speed_over_error", "time_bars"]

KNOWN = {"same answer": 4, "success not inferior": 1, "success not shown": 2}  # to its color
GROUPS = {"branches": 1, "reuse": 4, "always, context": 3, "solver": 2, "rest": 0}
FLOOR = 1e-8  # errors below it are rounding, and a logarithm needs more than 0


def speed_over_error(arms: Sequence[ArmFindings]) -> Html:
    """Each arm as a point: the error of its actions to the right, its speed-up upwards.

    Args:
        arms: those whose speed-up may be shown, and which were compared.
    """
    width, height, left, right, top, bottom = 640, 380, 46, 20, 16, 46
    places = [
        (math.log10(max(arm.error.mean, FLOOR)), math.log10(arm.shown_speedup.value), arm)
        for arm in arms
        if arm.error and arm.shown_speedup
    ]
    x_low, x_high = _span([x for x, _, _ in places], 0.5)
    y_low, y_high = _span([0.0, *(y for _, y, _ in places)], 0.08)

    def x_at(value: float) -> float:
        return left + (width - left - right) * (value - x_low) / (x_high - x_low)

    def y_at(value: float) -> float:
        return top + (height - top - bottom) * (y_high - value) / (y_high - y_low)

    parts = []
    for tick in log_ticks(x_low, x_high):
        x = x_at(math.log10(tick))
        parts += [
            element("line", x1=x, x2=x, y1=top, y2=height - bottom, class_="grid"),
            element("text", f"{tick:g}", x=x, y=height - bottom + 18, text_anchor="middle"),
        ]
    for tick in log_ticks(y_low, y_high):
        y = y_at(math.log10(tick))
        parts += [
            element("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid"),
            element("text", f"{tick:g}x", x=left - 6, y=y + 4, text_anchor="end"),
        ]
    caption = "mean error of an action, normalized"
    parts.append(element("text", caption, x=(left + width) / 2, y=height - 6, text_anchor="middle"))
    free = -math.inf  # labels go down the page, none over the one before
    for x, y, arm in sorted(places, key=lambda place: -place[1]):
        free = max(y_at(y) + 4, free + 14)
        on_the_left = x_at(x) > width - 130
        parts += [
            element("circle", cx=x_at(x), cy=y_at(y), r=5, class_=f"s{_color(arm)}"),
            element("text", arm.name, x=x_at(x) + (-10 if on_the_left else 10), y=free,
                    text_anchor="end" if on_the_left else "start"),
        ]  # fmt: skip
    return element(
        "svg", *parts, viewBox=f"0 0 {width} {height}", role="img", class_="chart",
        aria_label="Speed-up of each arm over the error of its actions",
    )  # fmt: skip


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    return min(values) - margin, max(values) + margin


def _color(arm: ArmFindings) -> int:
    if arm.comparison and arm.comparison.verdict == "non-inferior":
        return KNOWN["success not inferior"]
    return KNOWN["same answer" if arm.exact else "success not shown"]


def time_bars(arms: Sequence[ArmFindings]) -> Html:
    """A bar an arm, as long as a plan takes, in the colors of `GROUPS`."""
    left, row = 120, 24
    totals = [sum((arm.stages_ms or {}).values()) for arm in arms]
    scale = 500 / max(totals)
    parts = []
    for n, (arm, total) in enumerate(zip(arms, totals, strict=True)):
        top, x = n * row, float(left)
        parts.append(element("text", arm.name, x=left - 8, y=top + 15, text_anchor="end"))
        shares = dict.fromkeys(GROUPS, 0.0)
        for stage, ms in (arm.stages_ms or {}).items():
            shares[_group(stage)] += max(ms, 0.0)
        for group, ms in shares.items():
            parts.append(
                element("rect", x=f"{x:.2f}", y=top + 3, width=f"{scale * ms:.2f}",
                        height=row - 8, class_=f"s{GROUPS[group]}")
            )  # fmt: skip
            x += scale * ms
        parts.append(element("text", f"{total:.3g} ms", x=x + 8, y=top + 15))
    return element(
        "svg", *parts, viewBox=f"0 0 {left + 580} {row * len(arms)}", role="img", class_="chart",
        aria_label="Where the time of a plan goes, one bar an arm",
    )  # fmt: skip


def _group(stage: str) -> str:
    if stage in GROUPS:
        return stage
    if stage in ("always", "context"):
        return "always, context"
    return "rest" if stage == "observations" else "branches"
