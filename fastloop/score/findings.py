"""What a scoring run found, the same for the terminal, the page and ``result.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Metric

__all__ = ["Case", "Coverage", "ScoreFindings", "metric_table", "split_name"]

HORIZON = re.compile(r"_(\d+s|avg)$")


@dataclass(frozen=True)
class Coverage:
    """How much of the benchmark was scored.

    Attributes:
        samples: of the benchmark.
        scored: of them.
        faults: by sample, why it was not.
        damage: what of the data could not be read.
        strangers: predictions for no sample of the benchmark; no harm by themselves, for a file may
            hold plans of a whole split where a benchmark scores some of it, and a name misspelt is
            one that is missing among the samples.
    """

    samples: int
    scored: int
    faults: Mapping[str, str] = field(default_factory=dict)
    damage: Sequence[str] = ()
    strangers: Sequence[str] = ()

    @property
    def value(self) -> float:
        """Share of samples that were scored, 0 to 1."""
        return self.scored / self.samples if self.samples else 0.0

    @property
    def complete(self) -> bool:
        """Whether every sample was scored and all data could be read."""
        return self.scored == self.samples > 0 and not self.damage

    def sentences(self, most: int = 5) -> list[str]:
        """What is missing, in words; at most so many faults of a kind."""
        told = [f"{self.scored} of {self.samples} samples scored ({self.value:.1%})."]
        told += [f"not scored: {key}: {why}" for key, why in list(self.faults.items())[:most]]
        told += [f"damaged: {what}" for what in self.damage[:most]]
        if self.strangers:
            some = ", ".join(self.strangers[:most])
            told.append(f"{len(self.strangers)} predictions are for no sample scored here: {some}")
        hidden = max(0, len(self.faults) - most) + max(0, len(self.damage) - most)
        return [*told, f"and {hidden} more, in result.json"] if hidden else told


@dataclass(frozen=True)
class Case:
    """One scored sample to be looked at: its name, its plan (T, 2) and its figures."""

    key: str
    plan: NDArray[np.float64]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class ScoreFindings:
    """All of it.

    Attributes:
        planner: whose plans.
        benchmark: on what.
        metrics: the figures.
        conditions: what must be said beside them.
        coverage: how much was scored.
        worst: the worst samples, the worst first.
    """

    planner: str
    benchmark: str
    metrics: Mapping[str, Metric]
    conditions: Mapping[str, str]
    coverage: Coverage
    worst: Sequence[Case] = ()


def metric_table(
    metrics: Mapping[str, Metric], between: str = " "
) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row a figure with its unit and n, one column a horizon.

    Args:
        metrics: by name; a horizon stands at its end, as in ``ade_3s``.
        between: a figure and its interval.
    """
    horizons = list(dict.fromkeys(split_name(name)[1] for name in metrics))
    rows: dict[str, dict[str, Metric]] = {}
    for name, metric in metrics.items():
        stem, horizon = split_name(name)
        rows.setdefault(stem, {})[horizon] = metric
    table = []
    for stem, found in rows.items():
        one = next(iter(found.values()))
        unit = "%" if one.unit == "fraction" else one.unit if one.unit != "1" else ""
        cells = [_cell(found[h], between) if h in found else "" for h in horizons]
        counts = sorted({metric.n for metric in found.values()})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        table.append([stem, *cells, unit, n])
    return ["", *(horizon or "value" for horizon in horizons), "unit", "n"], table


def split_name(name: str) -> tuple[str, str]:
    """What a figure is, and at which horizon: ``ade_3s`` is ``ade`` and ``3s``."""
    found = HORIZON.search(name)
    return (name[: found.start()], found[1]) if found else (name, "")


def _cell(metric: Metric, between: str) -> str:
    if math.isnan(metric.value):
        return "-"
    scale = 100 if metric.unit == "fraction" else 1
    value, low, high = (scale * x for x in (metric.value, metric.low, metric.high))
    return f"{value:.3f}{between}({low:.2f} to {high:.2f})"
