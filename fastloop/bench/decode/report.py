"""The bench as tables, the same for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from fastloop.accel.decoding.passes import PHASES
from fastloop.bench.decode.arms import JUMP_FORWARD
from fastloop.bench.decode.findings import DecodeFindings
from fastloop.bench.report import Table
from fastloop.sims.report.console import text_table
from fastloop.sims.report.text import difference_cell, milliseconds, percent, times
from fastloop.sims.stats import Interval

__all__ = ["CAPTION", "STAGES", "print_tables", "tables"]

CAPTION = (
    "Every way of writing has the same weights and the same canvas. A plan is timed from the "
    "observation to the waypoints, the arms taking turns; ratios are of medians, with 95% "
    "bootstrap intervals. Forwards are passes over the answer; the one over the prompt is told "
    "apart. Value tokens are those that were not given. The first arm is plain: token by token, or "
    "the surest token of each pass; agreement is the share of value tokens that are its. "
    "jump_forward is token by token too, and reads what is given along with the value before it."
)
STAGES = ("prompt", *PHASES, "rest")


def tables(arms: Sequence[DecodeFindings], left_out: Mapping[str, str]) -> list[Table]:
    """What people read."""
    names = [one.name for one in arms]
    fewest = JUMP_FORWARD if JUMP_FORWARD in names else names[0]
    speed = (
        "arm", "a plan", f"faster than {names[0]}", "95% interval", f"fewer forwards than {fewest}",
        "tokens a forward", "values a forward", "answer",
    )  # fmt: skip
    way = ("arm", "answers are", "forwards", "tokens fed", "a plan", "agreement", "error, m")
    count = ("arm", *PHASES, "host syncs", "accepted a cycle", "KV")
    watched = [one for one in arms if one.timed and not one.refused]
    found = [
        Table("Speed and parity", speed, [_speed(one) for one in arms]),
        Table("Ways of writing", way, [_way(one) for one in arms]),
        Table("Forwards of a plan", count, [_counts(one) for one in arms]),
        Table(
            "Answers",
            ("arm", "are JSON", "follow the schema", "answers", "given tokens altered"),
            [_valid(one) for one in arms],
        ),
        Table(
            "Latency of a plan",
            ("arm", "p50", "p90", "p99", "max", "plans", "cold", "a forward"),
            [_latency(one) for one in watched],
        ),
        Table(
            "Where the time of a plan goes, ms",
            ("arm", *STAGES),
            [[one.name, *_stages(one)] for one in watched],
        ),
        Table(
            "Several answers from one prefix",
            ("arm", "answers", "time over one answer's", "95% interval"),
            [_forks(one) for one in arms if one.arm.forks],
        ),
        Table(
            "Gates",
            ("arm", "gate", "answers", "wrong"),
            [
                [one.name, gate.name, str(gate.compared), str(gate.wrong)]
                for one in arms
                for gate in one.gates
            ],
        ),
        Table(
            "Displacement from the expert, m",
            ("arm", "over", "mean (95%)", "difference (95%)", "from", "moments"),
            [row for one in arms for row in _errors(one)],
        ),
        Table(
            "Left out, because it cannot be right",
            ("arm", "reason"),
            [[name, reason] for name, reason in left_out.items()],
        ),
    ]
    return [table for table in found if table.rows]


def print_tables(arms: Sequence[DecodeFindings], others: Sequence[Table], console: Console) -> None:
    """Print all of them, and in red which gates are."""
    for table in others:
        console.print(text_table(table.title, table.head, table.rows))
    console.print(CAPTION, style="dim", markup=False, highlight=False)
    for one in arms:
        for gate in one.gates:
            if not gate.holds:
                told = f"{one.name}: {gate.name}: {gate.wrong} of {gate.compared} answers are wrong"
                console.print(Text(f"{told}; no speed-up is claimed", style="bold red"))


def _speed(one: DecodeFindings) -> list[str]:
    if one.refused:
        return [one.name, *["-"] * 6, one.answer]
    plan = milliseconds(one.timed.latency.p50) if one.timed else "-"
    speed, fewer, work = one.speedup, one.fewer_forwards, one.work
    return [
        one.name, plan, times(speed.value) if speed else "-", _range(speed),
        times(fewer.value) if fewer else "-", f"{work.tokens_per_forward.value:.2f}",
        f"{work.values_per_forward.value:.2f}", _answer(one),
    ]  # fmt: skip


def _way(one: DecodeFindings) -> list[str]:
    shown = one.timed if not one.refused else None
    error = one.errors[max(one.errors)].value if one.errors else None
    return [
        one.name, one.refused or one.arm.exactness.value.replace("_", " "),
        f"{one.work.forwards.value:.4g}", f"{one.work.tokens_fed.value:.4g}",
        milliseconds(shown.latency.p50) if shown else "-",
        percent(one.agreement.value) if one.agreement else "-",
        "-" if error is None else f"{error:.3g}",
    ]  # fmt: skip


def _answer(one: DecodeFindings) -> str:
    if one.arm.exact or one.alike is None:
        return one.answer
    return f"{one.answer}, {percent(one.alike)} alike"


def _counts(one: DecodeFindings) -> list[str]:
    work = one.work
    accepted = "-" if work.accepted is None else f"{work.accepted:.3g}"
    return [
        one.name, *(f"{work.phases[phase]:.4g}" for phase in PHASES), f"{work.host_syncs:.4g}",
        accepted, f"{work.kv_bytes / 2**20:.3g} MiB",
    ]  # fmt: skip


def _valid(one: DecodeFindings) -> list[str]:
    valid = one.valid
    return [
        one.name, percent(valid.json.value), percent(valid.schema.value), str(valid.json.n),
        str(one.violations),
    ]  # fmt: skip


def _latency(one: DecodeFindings) -> list[str]:
    assert one.timed is not None
    t = one.timed.latency
    return [
        one.name, *map(milliseconds, (t.p50, t.p90, t.p99, t.max)), str(t.n),
        milliseconds(t.cold_max), milliseconds(one.timed.ms_per_forward),
    ]  # fmt: skip


def _stages(one: DecodeFindings) -> list[str]:
    assert one.timed is not None
    spent = one.timed.stages_ms
    return [f"{spent[stage]:.3g}" if stage in spent else "-" for stage in STAGES]


def _forks(one: DecodeFindings) -> list[str]:
    ratio = None if one.refused else one.time_ratio
    told = times(ratio.value) if ratio else one.refused or "-"
    return [one.name, str(one.arm.config.rollouts), told, _range(ratio)]


def _errors(one: DecodeFindings) -> list[list[str]]:
    return [
        [one.name, f"{seconds} s", _mean(error), difference_cell(one.gaps.get(seconds)),
         one.against or "-", str(error.n)]
        for seconds, error in one.errors.items()
    ]  # fmt: skip


def _mean(interval: Interval) -> str:
    ends = "" if math.isnan(interval.low) else f" ({interval.low:.3g} to {interval.high:.3g})"
    return f"{interval.value:.3g}{ends}"


def _range(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return "-"
    return f"{interval.low:.3g} to {interval.high:.3g}"
