"""The bench as tables, for the terminal and for a page that needs nothing but a browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from fastloop.bench.forecast.findings import CACHED, ForecastFindings
from fastloop.bench.forecast.measure import CHOICE
from fastloop.bench.forecast.timing import QUERIES
from fastloop.bench.report import Table
from fastloop.sims.report.console import text_table
from fastloop.sims.report.markup import element, table
from fastloop.sims.report.page import fill_page, provenance_section
from fastloop.sims.report.text import difference_cell, milliseconds, times
from fastloop.sims.stats import Interval, LatencySummary

__all__ = ["caption", "print_tables", "render_forecast_bench", "tables"]


def caption(samples: int, drawn: int) -> str:
    """How to read the tables."""
    return (
        f"ADE and FDE: mean and last distance, of the best of {samples} samples and of one sample "
        f"in the mean. APD: how far the {samples} lie apart. MM: the best of {samples} for each of "
        "the futures that followed situations alike. KDE: negative log-likelihood of the true "
        f"points under a kernel density of {drawn} samples; own: that of the whole future, all its "
        "numbers in m, under the forecaster's own density. ECE: how far probabilities of events "
        "lie from frequencies, and by chance how far if they were right, as few as pedestrians "
        "are; AUROC: how well they tell; slowing down is asked of those who move; corrected: with "
        "all log-odds shifted by what came of the forecasts that were over by then; "
        "a forecaster of a single future says 0 or 1. Intervals are by a bootstrap over "
        "pedestrians, or recordings of bodies."
    )


def tables(
    arms: Sequence[ForecastFindings], asked: Mapping[str, LatencySummary], agents: int
) -> list[Table]:
    """What people read."""
    events = [name.removeprefix("ece_") for name in arms[0].events if name.startswith("ece_")]
    found = [
        Table(
            "The best of the samples, m",
            ("arm", "ADE", "95% interval", "FDE", "95% interval"),
            [[one.name, *_cells(one.errors["min_ade"]), *_cells(one.errors["min_fde"])]
             for one in arms],
        ),
        Table(
            f"Beside {arms[0].name}, m",
            ("arm", "ADE", "FDE", "trajectories"),
            [[one.name, difference_cell(one.gaps["min_ade"]), difference_cell(one.gaps["min_fde"]),
              str(one.gaps["min_ade"].n)] for one in arms if one.gaps],
        ),
        Table(
            "One sample, and all of them",
            ("arm", "ADE of one, m", "FDE of one, m", "APD, m", "MMADE, m", "MMFDE, m",
             "KDE, nats", "own, nats"),
            [[one.name, *(_value(one.errors.get(name)) for name in
              ("sample_ade", "sample_fde", "apd", "mm_ade", "mm_fde", "kde_nll", "nll"))]
             for one in arms],
        ),
        Table(
            f"Of {CHOICE} samples the one that {CACHED} finds likeliest, beyond one in the mean, m",
            ("arm", "ADE", "95% interval", "FDE", "95% interval"),
            [[one.name, *_cells(one.errors["chosen_ade"]), *_cells(one.errors["chosen_fde"])]
             for one in arms if "chosen_ade" in one.errors],
        ),
        Table(
            "Probabilities of events",
            ("arm", "event", "ECE", "95% interval", "by chance", "95% interval", "AUROC",
             "95% interval"),
            [[one.name, event, *(cell for figure in ("ece", "chance_ece", "auroc")
                                 for cell in _cells(one.events[f"{figure}_{event}"]))]
             for event in events for one in arms],
        ),
        Table(
            "Probabilities of events, corrected while watching",
            ("arm", "event", "ECE", "95% interval", "AUROC", "95% interval"),
            [[one.name, event, *_cells(one.events[f"online_ece_{event}"]),
              *_cells(one.events[f"online_auroc_{event}"])] for event in events for one in arms],
        ),
        Table(
            "Latency of a forecast, right after another; cold: after other arms' forecasts",
            ("arm", "agents", "p50", "p90", "p99", "max", "cold p50", "n"),
            [[one.name, str(of), *map(milliseconds, (it.p50, it.p90, it.p99, it.max, it.cold_p50)),
              str(it.n)] for one in arms for of, it in zip((1, agents), one.latency, strict=True)],
        ),
        Table(
            "Latency of what a table is asked for one agent",
            ("what", "p50", "p90", "p99", "max", "cold", "n"),
            [[QUERIES[name], *map(milliseconds, (it.p50, it.p90, it.p99, it.max, it.cold_max)),
              str(it.n)] for name, it in asked.items()],
        ),
        Table(
            f"How much sooner {CACHED} is there",
            ("than", "agents", "times", "95% interval", "cold", "95% interval"),
            [[one.name, str(of), *_times(warm), *_times(cold)] for one in arms
             for of, warm, cold in zip((1, agents), one.faster, one.faster_cold, strict=False)],
        ),
    ]  # fmt: skip
    return [one for one in found if one.rows]


def print_tables(found: Sequence[Table], told: str, console: Console) -> None:
    """Print all of them, and how to read them."""
    for one in found:
        console.print(text_table(one.title, one.head, one.rows))
    console.print(told, style="dim", markup=False, highlight=False)


def render_forecast_bench(
    found: Sequence[Table], told: str, about: str, facts: Mapping[str, Any], config: str
) -> str:
    """The whole page.

    Args:
        found: the tables.
        told: how to read them.
        about: what was measured, in a few words.
        facts: of the run, for its provenance.
        config: the configuration as YAML.
    """
    title = f"Forecasting: {about}"
    sections = [
        element("section", element("h2", one.title), table(one.head, one.rows)) for one in found
    ]
    header = element("header", element("p", "fastloop bench forecast", class_="eyebrow"),
                     element("h1", title), element("p", told))  # fmt: skip
    return fill_page(title, [header, *sections, provenance_section(facts, config)])


def _cells(interval: Interval) -> list[str]:
    return [_value(interval), interval.ends(".3f")]


def _times(interval: Interval) -> list[str]:
    return [times(interval.value), interval.ends(".3g")]


def _value(interval: Interval | None) -> str:
    return "-" if interval is None or math.isnan(interval.value) else f"{interval.value:.3f}"
