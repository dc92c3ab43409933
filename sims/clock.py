"""How time passes in the world while the policy thinks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["Clock", "Frozen", "Replay", "Wall", "late_ticks"]


class Clock(Protocol):
    """Says how long a plan took in the world's time.

    The world goes on while a plan is made: the old plan's actions run on and then the last one is
    held. An episode begins with its first plan ready, so only later plans are late.
    """

    def latency_s(self, measured_s: float, *, episode: int, plan: int) -> float:
        """Seconds that pass in the world.

        Args:
            measured_s: wall time of the policy call.
            episode: number of the episode (`WorkItem.episode`).
            plan: which plan of the episode, from 0.
        """
        ...


@dataclass(frozen=True)
class Frozen:
    """The world stands still while the policy thinks, as in published evaluations."""

    def latency_s(self, measured_s: float, *, episode: int, plan: int) -> float:
        """Zero."""
        return 0.0


@dataclass(frozen=True)
class Wall:
    """Plans are as late as they really were.

    A call that serves several environments counts in full for each of them, so the latency of one
    robot needs one environment and a plan batch of 1. Not deterministic.

    Attributes:
        scale: how many times as long plans take on the computer that is stood in for.
    """

    scale: float = 1.0

    def latency_s(self, measured_s: float, *, episode: int, plan: int) -> float:
        """`measured_s`, scaled."""
        return self.scale * measured_s


@dataclass(frozen=True)
class Replay:
    """Plans are as late as a trace says, in virtual time: deterministic on any machine.

    Each episode reads the trace in order from a place of its own, so that slow calls that follow
    each other stay together.

    Attributes:
        trace_s: latencies in seconds.
        seed: chooses the places.

    Raises:
        ValueError: for an empty trace or a latency that is negative or not finite.
    """

    trace_s: Sequence[float]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.trace_s:
            raise ValueError("a latency trace needs at least one latency")
        bad = [value for value in self.trace_s if not (math.isfinite(value) and value >= 0)]
        if bad:
            raise ValueError(f"latencies must be finite seconds, zero or more; got {bad[:5]}")

    def latency_s(self, measured_s: float, *, episode: int, plan: int) -> float:
        """The trace's latency for this plan."""
        start = int(np.random.SeedSequence((self.seed, episode)).generate_state(1)[0])
        return self.trace_s[(start + plan) % len(self.trace_s)]

    @classmethod
    def recorded(cls, timing: Path, *, seed: int = 0) -> Replay:
        """The warm calls of a ``timing.jsonl`` that an earlier run wrote."""
        calls = [json.loads(line) for line in timing.read_text().splitlines()]
        return cls([call["ms"] / 1000 for call in calls if not call["cold"]], seed)

    @classmethod
    def modeled(cls, median_s: float, p99_s: float, *, seed: int = 0, length: int = 1024) -> Replay:
        """Log-normal latencies with this median and 99th percentile.

        Raises:
            ValueError: unless 0 < median_s <= p99_s.
        """
        if not 0 < median_s <= p99_s:
            raise ValueError(f"need 0 < median <= p99, got {median_s} s and {p99_s} s")
        sigma = math.log(p99_s / median_s) / 2.3263478740408408  # normal quantile at 0.99
        draws = np.random.default_rng(seed).lognormal(math.log(median_s), sigma, length)
        return cls(draws.tolist(), seed)


def late_ticks(latency_s: float, control_hz: float) -> int:
    """Ticks that pass in `latency_s`, a started one counted in full."""
    return math.ceil(latency_s * control_hz - 1e-9)
