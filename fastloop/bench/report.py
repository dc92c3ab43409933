"""A bench as tables, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from fastloop.bench.findings import ArmFindings
from fastloop.sims.findings import Comparison
from fastloop.sims.report.console import text_table
from fastloop.sims.report.text import difference_cell, milliseconds, percent, points, times

__all__ = ["CAPTION", "Table", "print_tables", "stage_table", "tables"]

CAPTION = (
    "Speed-ups are ratios of median plan times, the arms timed in turns, with 95% bootstrap "
    "intervals. Action errors are mean and largest absolute differences from the policy as "
    "published on the same noise; a sampler of its own takes another way to its actions, so that "
    "its error is no loss by itself."
)
FIRST, LAST = ("network", "graph", "observations", "context", "always"), ("reuse", "solver", "rest")


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows that begin with the name of an arm."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(arms: Sequence[ArmFindings], unit: str) -> list[Table]:
    """What people read; `unit` is that of the environment's actions."""
    unit = unit or "units"
    speed_head = ("arm", "speed-up", "95% interval", "a plan", "error", "success")
    error_head = ("arm", "mean", "largest", f"mean, {unit}", f"largest, {unit}")
    work_head = ("arm", "GFLOP", "reused", "evaluations", "parity, float64")
    found = [
        Table("Speed, action error and success", speed_head, [_speed(arm) for arm in arms]),
        Table("Error of an action", error_head, [_error(arm) for arm in arms if arm.error]),
        Table(
            "Success in closed loop, points beside the policy as published",
            ("arm", "verdict", "difference", "95% interval", "pairs"),
            [_success(arm.name, arm.comparison) for arm in arms if arm.comparison],
        ),
        Table(
            "Means over episodes, beside the policy as published",
            ("arm", "figure", "difference", "pairs"),
            [
                [arm.name, name, difference_cell(gap), str(gap.n)]
                for arm in arms
                if arm.comparison
                for name, gap in arm.comparison.figures.items()
            ],
        ),
        Table("Work of a chunk", work_head, [_work(arm) for arm in arms]),
    ]
    return [table for table in found if table.rows]


def stage_table(arms: Sequence[ArmFindings]) -> Table:
    """Where the time goes, a column a stage in an order that is always the same."""
    names = list(dict.fromkeys(name for arm in arms for name in arm.stages_ms or ()))
    kinds = [name for name in names if name not in FIRST + LAST]
    columns = [name for name in (*FIRST, *kinds, *LAST) if name in names]
    rows = [[arm.name, *(_ms((arm.stages_ms or {}).get(c)) for c in columns)] for arm in arms]
    return Table("Where the time of a plan goes, ms", ("arm", *columns), rows)


def print_tables(arms: Sequence[ArmFindings], unit: str, console: Console) -> None:
    """Print everything, and in red which gates are."""
    for table in tables(arms, unit):
        console.print(text_table(table.title, table.head, table.rows))
    console.print("Where the time of a plan goes, ms, in a pass of its own:", markup=False)
    for arm in arms:
        stages = sorted((arm.stages_ms or {}).items(), key=lambda stage: -stage[1])
        told = ", ".join(f"{stage} {_ms(ms)}" for stage, ms in stages)
        console.print(f"  {arm.name}: {told or 'not measured'}", markup=False, highlight=False)
    console.print(CAPTION, style="dim", markup=False, highlight=False)
    for arm in arms:
        if arm.not_replayed:
            told = f"{arm.name}: no CUDA graph: {arm.not_replayed}"
            console.print(Text(told, style="bold yellow"))
        if arm.refused:
            told = f"{arm.name}: {arm.refused}; no speed-up is claimed"
            console.print(Text(told, style="bold red"))


def _speed(arm: ArmFindings) -> list[str]:
    error = f"{arm.error.mean:.2g}" if arm.error else "-"
    if arm.parity is None:
        return [arm.name, times(1), "-", milliseconds(arm.p50_ms or 0), error, arm.success]
    speed = arm.shown_speedup
    if speed is None:
        return [arm.name, arm.refused or "-", "-", "-", error, arm.success]
    plan = milliseconds(arm.p50_ms or 0)
    return [arm.name, times(speed.value), speed.ends(".3g"), plan, error, arm.success]


def _error(arm: ArmFindings) -> list[str]:
    error = arm.error
    assert error is not None
    figures = (error.mean, error.largest, error.mean_in_units, error.largest_in_units)
    return [arm.name, *(f"{figure:.2g}" for figure in figures)]


def _success(name: str, comparison: Comparison) -> list[str]:
    gap = comparison.difference.interval
    interval = f"{points(gap.low)} to {points(gap.high)}"
    return [name, comparison.verdict, points(gap.value), interval, str(gap.n)]


def _work(arm: ArmFindings) -> list[str]:
    work = arm.work
    parity = f"{arm.parity.double:.1g}" if arm.parity else "-"
    return [
        arm.name, f"{work.flops / 1e9:.3g}", percent(work.reused), str(work.evaluations), parity,
    ]  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
