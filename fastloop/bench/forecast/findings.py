"""What was found of each arm, and as ``result.json`` has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastloop.bench.forecast.measure import UNITS
from fastloop.sims.stats import Interval, LatencySummary

__all__ = ["CACHED", "ForecastFindings", "metrics"]

CACHED = "cacheflow"


@dataclass(frozen=True)
class ForecastFindings:
    """One arm.

    Attributes:
        name: its.
        errors: name of one of `UNITS` to its mean.
        events: ``ece_<event>`` and ``auroc_<event>``.
        gaps: of errors, in the mean of trajectories, beyond those of the first arm.
        latency: of a forecast for one agent, and for several at once.
        faster: its own median time over that of `CACHED`, for one agent and for several; empty for
            `CACHED` itself, and where it is not there.
    """

    name: str
    errors: Mapping[str, Interval]
    events: Mapping[str, Interval]
    gaps: Mapping[str, Interval]
    latency: tuple[LatencySummary, LatencySummary]
    faster: tuple[Interval, ...] = ()


def metrics(
    arms: Sequence[ForecastFindings], asked: Mapping[str, LatencySummary], agents: int
) -> dict[str, dict[str, Any]]:
    """The metrics of ``result.json``, named ``<quantity>_<arm>``, and latencies of `QUERIES`."""
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        for name, interval in arm.errors.items():
            found[f"{name}_{arm.name}"] = _measured(interval, UNITS[name])
        for name, interval in arm.events.items():
            found[f"{name}_{arm.name}"] = _measured(interval, "1")
        for name, interval in arm.gaps.items():
            found[f"{name}_difference_{arm.name}"] = _measured(interval, UNITS[name])
        for of, latency in zip((1, agents), arm.latency, strict=True):
            found |= _timed(latency, f"{of}_{arm.name}")
        for of, faster in zip((1, agents), arm.faster, strict=False):
            found[f"speedup_{of}_{CACHED}_over_{arm.name}"] = _measured(faster, "x")
    for name, latency in asked.items():
        found |= _timed(latency, name)
    return found


def _timed(latency: LatencySummary, of: str) -> dict[str, dict[str, Any]]:
    return {
        f"latency_{name}_{of}": {
            "value": _number(getattr(latency, name)),
            "unit": "ms",
            "n": latency.cold_n if name == "cold_max" else latency.n,
        }
        for name in ("p50", "p90", "p99", "max", "cold_max")
    }


def _measured(interval: Interval, unit: str) -> dict[str, Any]:
    return {"unit": unit} | {key: _number(value) for key, value in asdict(interval).items()}


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
