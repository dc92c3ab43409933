"""The report as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastloop.sims.findings import analyze
from fastloop.sims.report.text import (
    LATENCY_HEAD,
    SUCCESS_HEAD,
    comparison_rows,
    figure_head,
    figure_rows,
    latency_row,
    predictability_line,
    rate_cells,
    success_row,
)
from fastloop.sims.summary import RunSummary

__all__ = ["print_report", "text_table"]

COLORS = {"non-inferior": "green", "inconclusive": "yellow", "inferior": "red"}


def print_report(summary: RunSummary, console: Console) -> None:
    """Print success, paired comparison, latency and coverage."""
    findings = analyze(summary)
    console.print(text_table("Success", SUCCESS_HEAD, map(success_row, findings.arms)))
    means = [[arm.name, *rate_cells(arm.over_tasks)] for arm in findings.arms if arm.over_tasks]
    if means:
        head = ("policy", "mean over tasks", "95% interval", "n")
        console.print(text_table("Every task weighing the same", head, means))
    for comparison in findings.comparisons:
        title = f"{comparison.candidate} against {comparison.baseline}"
        console.print(text_table(title, None, comparison_rows(comparison)))
    if figures := figure_rows(findings):
        console.print(text_table("Means over episodes", figure_head(findings), figures))
    if any(arm.latency.n or arm.latency.cold_n for arm in findings.arms):
        console.print(
            text_table("Latency of a plan", LATENCY_HEAD, map(latency_row, findings.arms))
        )
    if clock := summary.provenance.get("clock"):
        console.print(Text(clock))
    if told := predictability_line(findings):
        console.print(Text(told))
    for comparison in findings.comparisons:
        console.print(Text(comparison.sentence(), style=COLORS[comparison.verdict]))
    style = "" if findings.coverage.complete else "bold red"
    console.print(Text(findings.coverage.sentence(), style=style))


def text_table(title: str, head: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column names the row and whose others are figures."""
    rows = list(rows)
    table = Table(title=Text(title), title_justify="left", show_header=head is not None)
    for index, name in enumerate(head or rows[0]):
        # A name that is cut short may be that of several rows.
        table.add_column(Text(name), justify="right" if index and head else "left",
                         overflow="ellipsis" if index else "fold")  # fmt: skip
    for row in rows:
        # Text, so that a name with brackets is not read as rich markup.
        table.add_row(*map(Text, row))
    return table
