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
        events: what `event_intervals` finds, by name.
        gaps: of errors, in the mean of trajectories, beyond those of the first arm.
        latency: of a forecast for one agent, and for several at once; warm, right after another of
            its own, and cold, after those of the other arms.
        faster: its own median warm time over that of `CACHED`, for one agent and for several; empty
            for `CACHED` itself, and where it is not there.
        faster_cold: the same of the cold ones.
    """

    name: str
    errors: Mapping[str, Interval]
    events: Mapping[str, Interval]
    gaps: Mapping[str, Interval]
    latency: tuple[LatencySummary, LatencySummary]
    faster: tuple[Interval, ...] = ()
    faster_cold: tuple[Interval, ...] = ()


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
        for what, ratios in {"speedup": arm.faster, "speedup_cold": arm.faster_cold}.items():
            for of, faster in zip((1, agents), ratios, strict=False):
                found[f"{what}_{of}_{CACHED}_over_{arm.name}"] = _measured(faster, "x")
    for name, latency in asked.items():
        found |= _timed(latency, name)
    return found


def _timed(latency: LatencySummary, of: str) -> dict[str, dict[str, Any]]:
    return {
        f"latency_{name}_{of}": {
            "value": _number(getattr(latency, name)),
            "unit": "ms",
            "n": latency.cold_n if name.startswith("cold") else latency.n,
        }
        for name in ("p50", "p90", "p99", "max", "cold_p50", "cold_max")
    }


def _measured(interval: Interval, unit: str) -> dict[str, Any]:
    return {"unit": unit} | {key: _number(value) for key, value in asdict(interval).items()}


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
