"""The clock that a configuration asks for, and how late plans then come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from fastloop.config import ClockConfig
from fastloop.sims.clock import Clock, Frozen, Replay, Wall, late_ticks
from fastloop.sims.report.text import milliseconds

__all__ = ["check_clock", "describe_clock", "make_clock", "replayed_ms"]

KINDS = ("frozen", "replay", "measured", "wall")


def check_clock(config: ClockConfig) -> None:
    """Refuse what would only come out later, or would do nothing.

    Raises:
        ValueError: an unknown kind, or settings that do not go with it.
    """
    kind, given = config.kind, bool(config.latency_ms)
    if kind not in KINDS:
        raise ValueError(f"unknown clock {kind!r}; have: {', '.join(KINDS)}")
    if kind != "replay" and given:
        raise ValueError(f"clock.kind={kind} reads no clock.latency_ms; say clock.kind=replay")
    if not (math.isfinite(config.scale) and config.scale > 0):
        raise ValueError(f"clock.scale must be a finite number above 0, got {config.scale}")
    if kind == "frozen" and config.scale != 1:
        raise ValueError(
            f"clock.scale={config.scale:g} does nothing while the world waits for every plan; say "
            "clock.kind=measured, replay or wall"
        )
    if kind == "replay":
        Replay(config.latency_ms)


def replayed_ms(config: ClockConfig, timed_ms: Sequence[float]) -> list[float]:
    """The latencies that an arm's plans come late by, in turns; none where none are replayed.

    Arms that were timed in turns begin an episode at the same place of traces that are equally
    long, so that what slowed the computer down for a moment slows both of them.

    Args:
        timed_ms: of the arm, the first one cold.
    """
    trace = {"replay": config.latency_ms, "measured": timed_ms[1:]}.get(config.kind, [])
    return [config.scale * ms for ms in trace]


def make_clock(config: ClockConfig, timed_ms: Sequence[float]) -> Clock:
    """The clock of an arm whose plans take `timed_ms`, the first one cold."""
    if config.kind == "frozen":
        return Frozen()
    if config.kind == "wall":
        return Wall(config.scale)
    return Replay([1e-3 * ms for ms in replayed_ms(config, timed_ms)])


def describe_clock(
    config: ClockConfig, timed_ms: Mapping[str, Sequence[float]], control_hz: float
) -> str:
    """How late plans come, in a sentence.

    Args:
        timed_ms: of each arm, the first one cold.
        control_hz: ticks a second.
    """
    scaled = "" if config.scale == 1 else f" times {config.scale:g}"
    if config.kind == "frozen":
        return "The world waits for every plan."
    if config.kind == "wall":
        return f"Plans come as late as they really are{scaled}."

    def median_of(trace: Sequence[float]) -> str:
        ms = median(trace)
        ticks = late_ticks(1e-3 * ms, control_hz)
        return f"{milliseconds(ms)} ({ticks} tick{'s' * (ticks != 1)})"

    if config.kind == "replay":
        shown = median_of(replayed_ms(config, []))
        return f"Plans come late as a trace of latencies says{scaled}: p50 {shown}."
    arms = (f"{name} {median_of(replayed_ms(config, ms))}" for name, ms in timed_ms.items())
    return f"Every policy's plans come late by its own latencies{scaled}: p50 {', '.join(arms)}."
