"""The report's figures as inline SVG; colors come from the page's style through classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fastloop.sims.report.markup import Html, element, join
from fastloop.sims.stats import Interval
from fastloop.sims.summary import PlanMask

__all__ = ["interval_strip", "latency_curves", "log_ticks", "reuse_map"]


def interval_strip(
    interval: Interval, low: float, high: float, series: int, marks: Mapping[float, str]
) -> Html:
    """An interval as a bar with its estimate, on a scale from `low` to `high`.

    Args:
        marks: vertical lines, by value the class that styles them.
    """

    def x(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low) / (high - low)))

    lines = [
        element("line", x1=f"{x(at):.2f}%", x2=f"{x(at):.2f}%", y1=0, y2=18, class_=style)
        for at, style in marks.items()
    ]
    left, right = x(interval.low), x(interval.high)
    bar = element(
        "rect", x=f"{left:.2f}%", width=f"{max(right - left, 0.5):.2f}%", y=6, height=6, rx=3,
        class_=f"s{series} span",
    )  # fmt: skip
    dot = Html()
    if interval.n:
        dot = element("circle", cx=f"{x(interval.value):.2f}%", cy=9, r=5, class_=f"s{series}")
    return element("svg", *lines, bar, dot, class_="strip", aria_hidden="true")


def latency_curves(curves: Mapping[str, Sequence[float]]) -> Html:
    """Share of calls that finish within a time (ECDF) for each arm, on a logarithmic time axis.

    Args:
        curves: latencies in milliseconds by arm; arms without a call draw nothing.
    """
    width, height, left, right, top, bottom = 560, 300, 46, 14, 10, 44
    values = [ms for latencies in curves.values() for ms in latencies]
    first, last = math.log10(min(values)), math.log10(max(values))
    margin = 0.05 * (last - first) + 0.02
    first, last = first - margin, last + margin

    def x(ms: float) -> float:
        return left + (width - left - right) * (math.log10(ms) - first) / (last - first)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts += [
            element("line", x1=left, x2=width - right, y1=y(share), y2=y(share), class_="grid"),
            element("text", f"{share:.0%}", x=left - 8, y=y(share) + 4, text_anchor="end"),
        ]
    for tick in log_ticks(first, last):
        parts += [
            element("line", x1=x(tick), x2=x(tick), y1=top, y2=y(0), class_="grid"),
            element("text", f"{tick:g}", x=x(tick), y=y(0) + 18, text_anchor="middle"),
        ]
    middle = (left + width - right) / 2
    parts.append(
        element("text", "latency of a plan, ms", x=middle, y=height - 6, text_anchor="middle")
    )
    for series, latencies in enumerate(curves.values()):
        if latencies:
            path = f"M{x(min(latencies)):.1f} {y(0):.1f}" + "".join(
                f"V{y(share):.1f}H{x(ms):.1f}" if ms is not None else f"V{y(share):.1f}"
                for share, ms in _steps(sorted(latencies))
            )
            parts.append(element("path", d=path, class_=f"curve s{series}"))
    return element(
        "svg", *parts, viewBox=f"0 0 {width} {height}", role="img", class_="chart",
        aria_label="Share of plans that finish within a time, one curve an arm",
    )  # fmt: skip


def _steps(values: Sequence[float], most: int = 400) -> Iterator[tuple[float, float | None]]:
    """Corners of an ECDF: rise to a share, then go right to the next value (None at the end)."""
    n = len(values)
    stops = sorted({round(i * n / most) for i in range(1, most + 1)} - {0})
    for stop in stops:
        yield stop / n, values[stop] if stop < n else None


def log_ticks(first: float, last: float) -> list[float]:
    """Round numbers between 10**first and 10**last, at most about eight."""
    decades = range(math.floor(first), math.ceil(last) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if first <= math.log10(tick) <= last]
        if len(ticks) <= 8:
            break
    return ticks


def reuse_map(plan: PlanMask) -> Html:
    """Which branches are computed at which denoising step; the first step is on the left."""
    steps, names = len(plan.compute), plan.branches
    left = 14 + 7 * min(24, max(map(len, names), default=0))
    cell, row, right, bottom = 720 / max(steps, 1), 15, 74, 34
    width, height = left + 720 + right, row * len(names) + bottom
    parts = []
    for index, name in enumerate(names):
        flags = [bool(step[index]) for step in plan.compute]
        top = row * index
        boxes = "".join(
            f"M{left + cell * start:.2f} {top + 1}h{cell * (stop - start):.2f}v{row - 2}"
            f"h{-cell * (stop - start):.2f}z"
            for start, stop in _runs(flags)
        )
        parts += [
            element("rect", x=left, y=top + 1, width=720, height=row - 2, class_="reused"),
            element("path", d=boxes, class_="computed"),
            element("text", name, x=left - 8, y=top + 12, text_anchor="end"),
            element("text", f"{sum(flags)} of {steps}", x=left + 728, y=top + 12),
        ]
    # Cells read as cells where there is room for a seam between them.
    if cell >= 4:
        seams = "".join(f"M{left + cell * k:.2f} 0V{row * len(names)}" for k in range(1, steps))
        parts.append(element("path", d=seams, class_="seam"))
    base = row * len(names) + 16
    stride = 1 if steps <= 20 else 10 * math.ceil(steps / 200)
    for step in sorted({0, *range(stride - 1, steps, stride)}):
        parts.append(
            element("text", step + 1, x=left + cell * (step + 0.5), y=base, text_anchor="middle")
        )
    caption = "denoising step, from noise to action"
    parts.append(element("text", caption, x=left + 360, y=base + 16, text_anchor="middle"))
    chart = element(
        "svg", join(parts), viewBox=f"0 0 {width} {height}", role="img", class_="map",
        aria_label="Branches computed and reused at each denoising step",
    )  # fmt: skip
    return element("div", chart, class_="scroll")


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of True."""
    start = None
    for index, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = index
        elif not flag and start is not None:
            yield start, index
            start = None
