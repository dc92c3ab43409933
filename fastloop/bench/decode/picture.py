"""The bench's two pictures as inline SVG: where the time goes, and what cycles accept."""

from __future__ import annotations

from collections.abc import Sequence

from fastloop.bench.decode.findings import DecodeFindings
from fastloop.sims.report.markup import Html, element

__all__ = ["GROUPS", "accepted_bars", "time_bars"]

GROUPS = {"prompt, prefill": 0, "draft, denoise": 1, "verify": 4, "keep": 3, "rest": 2}  # to color
LEFT = 170


def time_bars(arms: Sequence[DecodeFindings]) -> Html:
    """A bar an arm, as long as its plans take, in the colors of `GROUPS`.

    Args:
        arms: those that were timed.
    """
    row, spent = 24, [dict(one.timed.stages_ms) for one in arms if one.timed]
    scale = 500 / max(sum(stages.values()) for stages in spent)
    parts = []
    for n, (one, stages) in enumerate(zip(arms, spent, strict=True)):
        top, x = n * row, float(LEFT)
        parts.append(element("text", one.name, x=LEFT - 8, y=top + 15, text_anchor="end"))
        for group, color in GROUPS.items():
            width = scale * sum(max(0.0, stages.get(stage, 0.0)) for stage in group.split(", "))
            parts.append(
                element("rect", x=f"{x:.2f}", y=top + 3, width=f"{width:.2f}", height=row - 8,
                        class_=f"s{color}")
            )  # fmt: skip
            x += width
        total = sum(stages.values())
        parts.append(element("text", f"{total:.3g} ms", x=x + 8, y=top + 15))
    return _chart(parts, row * len(arms), "Where the time of a plan goes, one bar an arm")


def accepted_bars(arms: Sequence[DecodeFindings]) -> Html:
    """For each arm the share of its cycles that accepted so many slots, given ones included.

    Args:
        arms: those that draft.
    """
    row, high = 84, 52
    most = max(size for one in arms for size in one.work.cycles)
    step = 500 / (most + 1)
    parts = []
    for n, one in enumerate(arms):
        base, cycles = n * row + high + 6, one.work.cycles
        tallest = max(cycles.values())
        parts += [
            element("text", one.name, x=LEFT - 8, y=base - 18, text_anchor="end"),
            element("text", f"mean {one.work.accepted:.3g}", x=LEFT - 8, y=base - 2,
                    text_anchor="end"),
            element("line", x1=LEFT, x2=LEFT + 500, y1=base, y2=base, class_="grid"),
        ]  # fmt: skip
        for size, times in sorted(cycles.items()):
            height = high * times / tallest
            told = f"{size}: {times / cycles.total():.1%} of {cycles.total()} cycles"
            parts.append(
                element("rect", element("title", told), x=f"{LEFT + step * size:.2f}",
                        y=f"{base - height:.2f}", width=f"{max(step - 1, 0.5):.2f}",
                        height=f"{height:.2f}", class_="s1")
            )  # fmt: skip
        for size in sorted({0, most // 2, most}):
            x = LEFT + step * (size + 0.5)
            parts.append(element("text", size, x=f"{x:.2f}", y=base + 16, text_anchor="middle"))
    return _chart(parts, row * len(arms), "Slots accepted by a cycle, one histogram an arm")


def _chart(parts: Sequence[Html], height: int, label: str) -> Html:
    return element(
        "svg", *parts, viewBox=f"0 0 {LEFT + 580} {height}", role="img", class_="chart",
        aria_label=label,
    )  # fmt: skip
