"""The report as one HTML file that needs nothing but a browser."""

from __future__ import annotations

import math
from operator import itemgetter
from pathlib import Path

from fastloop.sims.findings import Comparison, analyze
from fastloop.sims.report.charts import interval_strip, latency_curves, reuse_map
from fastloop.sims.report.markup import Html, element, table
from fastloop.sims.report.page import SERIES, fill_page, legend_key, provenance_section
from fastloop.sims.report.rollouts import rollouts
from fastloop.sims.report.text import (
    LATENCY_HEAD,
    SUCCESS_HEAD,
    accel_facts,
    comparison_rows,
    figure_head,
    figure_rows,
    latency_row,
    milliseconds,
    percent,
    points,
    predictability_line,
    rate_cells,
    success_row,
    times,
)
from fastloop.sims.summary import RunSummary

__all__ = ["render_html"]

SHOWN_EPISODES = 100
BADGES = {"non-inferior": "good", "inconclusive": "open", "inferior": "bad"}
SCRIPT = """
for (const button of document.querySelectorAll("button")) button.onclick = () => {
  for (const video of button.closest(".rollout").querySelectorAll("video")) {
    video.currentTime = 0; video.play();
  }
};
"""


def render_html(summary: RunSummary, folder: Path) -> str:
    """The whole page; `folder` is where it will lie, for the paths of its videos."""
    sections = [
        _header(summary),
        _coverage(summary),
        _success(summary),
        _comparisons(summary),
        _figures(summary),
        _latency(summary),
        _accelerators(summary),
        _plans(summary),
        rollouts(summary, folder),
        provenance_section(summary.provenance, summary.config),
    ]
    return fill_page(_headline(summary), sections, SCRIPT)


def _headline(summary: RunSummary) -> str:
    findings = analyze(summary)
    if findings.comparisons:
        return findings.comparisons[0].headline()
    arm = findings.arms[0]
    return f"{arm.name}: {percent(arm.success.value)} success over {arm.success.n} episodes"


def _header(summary: RunSummary) -> Html:
    findings = analyze(summary)
    tasks = sorted({task for task, _ in summary.planned})
    about = f"fastloop {summary.verb} \u00b7 {', '.join(tasks)}"
    tiles = []
    if findings.comparisons:
        first = findings.comparisons[0]
        gap = first.difference.interval
        if first.speedup:
            speed = first.speedup
            tiles.append(("speed-up, ratio of medians", times(speed.value), speed.ends(unit="x")))
        ends = f"{points(gap.low)} to {points(gap.high)}, {gap.n} pairs"
        tiles.append(("success difference, points", points(gap.value), ends))
    timed = [arm for arm in findings.arms[:2] if arm.latency.n]
    if timed:
        medians = " \u2192 ".join(milliseconds(arm.latency.p50) for arm in timed)
        names = " \u2192 ".join(arm.name for arm in timed)
        tiles.append(("latency of a plan, median", medians.replace(" ms", "") + " ms", names))
    coverage = findings.coverage
    ends = f"{coverage.finished} of {coverage.planned} episodes"
    # Rounded down: 100% is for what is complete.
    tiles.append(("coverage", f"{math.floor(1000 * coverage.value) / 10:g}%", ends))
    return element(
        "header",
        element("p", about, class_="eyebrow"),
        element("h1", _headline(summary)),
        *(element("p", comparison.sentence()) for comparison in findings.comparisons),
        *(element("p", told) for told in [summary.provenance.get("clock")] if told),
        element("div", *(_tile(*tile) for tile in tiles), class_="tiles"),
    )


def _tile(name: str, value: str, detail: str) -> Html:
    return element("div", element("span", name), element("b", value), element("span", detail))


def _coverage(summary: RunSummary) -> Html:
    coverage = analyze(summary).coverage
    if coverage.complete:
        return Html()
    return element("section", element("p", coverage.sentence()), class_="warning")


def _figures(summary: RunSummary) -> Html:
    findings = analyze(summary)
    rows, told = figure_rows(findings), predictability_line(findings)
    parts = []
    if rows:
        note = "Means over episodes with 95% bootstrap intervals; differences are over pairs."
        parts += [
            element("h2", "Means over episodes"), table(figure_head(findings), rows),
            element("p", note, class_="note"),
        ]  # fmt: skip
    if told:
        parts.append(element("p", told))
    return element("section", *parts) if parts else Html()


def _success(summary: RunSummary) -> Html:
    findings = analyze(summary)
    rows = []
    for series, arm in enumerate(findings.arms):
        name, *cells = success_row(arm)
        strip = interval_strip(
            arm.success, 0, 1, series % SERIES, {0: "grid", 0.5: "grid", 1: "grid"}
        )
        rows.append([legend_key(series, name), strip, *cells])
    head = [SUCCESS_HEAD[0], "0 to 100%", *SUCCESS_HEAD[1:]]
    parts = [element("h2", "Success"), table(head, rows)]
    by_task = [
        [task, arm.name, *rate_cells(rate)]
        for arm in findings.arms
        for task, rate in arm.by_task.items()
    ]
    if any(len(arm.by_task) > 1 for arm in findings.arms):
        means = [
            ["mean over tasks", arm.name, *rate_cells(arm.over_tasks)]
            for arm in findings.arms
            if arm.over_tasks
        ]
        head = ["task", "policy", "success", "95% interval", "n"]
        parts += [element("h3", "By task"), table(head, sorted(by_task, key=itemgetter(0)) + means)]
    parts.append(
        element(
            "p", "Wilson intervals; the mean over tasks has a stratified bootstrap interval. "
            "An error counts as no success.", class_="note",
        )
    )  # fmt: skip
    return element("section", *parts)


def _comparisons(summary: RunSummary) -> Html:
    comparisons = analyze(summary).comparisons
    if not comparisons:
        return Html()
    blocks = [_comparison(c, series) for series, c in enumerate(comparisons, start=1)]
    return element(
        "section",
        element("h2", "Paired comparison"),
        *blocks,
        _episodes(summary),
        element(
            "p", "Same task, seed and initial state in each pair. Tango's score interval; "
            "non-inferior when its low end lies above the margin (one-sided 2.5%).", class_="note",
        ),
    )  # fmt: skip


def _comparison(comparison: Comparison, series: int) -> Html:
    interval, margin = comparison.difference.interval, comparison.margin
    reach = 1.15 * max(2 * margin, -interval.low, interval.high)
    reach = min(reach, 1.0)
    strip = interval_strip(
        interval, -reach, reach, series % SERIES, {-margin: "limit", 0.0: "zero"}
    )
    scale = element(
        "div",
        element("span", points(-reach)),
        element("span", f"margin {points(-margin)}", style=f"left:{50 - 50 * margin / reach:.2f}%"),
        element("span", f"{points(reach)} points"),
        class_="scale",
    )
    badge = element("span", comparison.verdict, class_=f"badge {BADGES[comparison.verdict]}")
    title = f"{comparison.candidate} against {comparison.baseline} "
    facts = element("div", table([], comparison_rows(comparison)), class_="facts")
    return element("div", element("h3", title, badge), strip, scale, facts, class_="versus")


def _episodes(summary: RunSummary) -> Html:
    """Episodes that ended differently in two arms, or in an error: where to look first."""
    ran = {arm.name: {episode.key: episode for episode in arm.episodes} for arm in summary.arms}
    rows = []
    for key in summary.planned:
        episodes = [ran[arm.name].get(key) for arm in summary.arms]
        outcomes = [episode.outcome if episode else "not run" for episode in episodes]
        if len(set(outcomes)) > 1 or "error" in outcomes:
            details = "; ".join(
                episode.detail for episode in episodes if episode and episode.detail
            )
            rows.append([f"{key[0]} seed {key[1]}", *outcomes, details])
    if not rows:
        return Html()
    shown = f", the first {SHOWN_EPISODES}" if len(rows) > SHOWN_EPISODES else ""
    title = element("summary", f"{len(rows)} episodes ended differently or in an error{shown}")
    head = ["episode", *(arm.name for arm in summary.arms), "detail"]
    return element("details", title, table(head, rows[:SHOWN_EPISODES]))


def _latency(summary: RunSummary) -> Html:
    findings = analyze(summary)
    warm = {
        arm.name: [ms for ms, cold in zip(arm.latencies_ms, arm.cold, strict=True) if not cold]
        for arm in summary.arms
    }
    if not any(warm.values()):
        return Html()
    rows = []
    for series, arm in enumerate(findings.arms):
        name, *cells = latency_row(arm)
        rows.append([legend_key(series, name), *cells])
    legend = [legend_key(series, arm.name) for series, arm in enumerate(summary.arms)]
    return element(
        "section",
        element("h2", "Latency"),
        table(LATENCY_HEAD, rows),
        element("h3", "Share of plans that finish within a time"),
        element("div", *legend, class_="legend"),
        latency_curves(warm),
        element("p", "Warm calls only; cold calls have their own columns.", class_="note"),
    )


def _accelerators(summary: RunSummary) -> Html:
    facts = {arm.name: accel_facts(arm.accel) for arm in summary.arms}
    names = list(dict.fromkeys(name for fact in facts.values() for name in fact))
    if not names:
        return Html()
    rows = [[name, *(fact.get(name, "-") for fact in facts.values())] for name in names]
    heading = element("h2", "What the accelerator did")
    return element("section", heading, table(["", *facts], rows))


def _plans(summary: RunSummary) -> Html:
    parts: list[Html] = []
    for arm in summary.arms:
        if arm.plan and arm.plan.branches and arm.plan.compute:
            flags = [bool(flag) for step in arm.plan.compute for flag in step]
            legend = element(
                "div",
                element("span", element("span", class_="key on"), "computed"),
                element("span", element("span", class_="key off"), "reused"),
                element("span", f"{percent(sum(flags) / len(flags))} computed", class_="soft"),
                class_="legend",
            )
            parts += [element("h3", arm.name), legend, reuse_map(arm.plan)]
    return element("section", element("h2", "Cache plan"), *parts) if parts else Html()
