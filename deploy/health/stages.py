"""Where the time of a tick goes, one histogram a stage."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from fastloop.deploy.health.histogram import Histogram

__all__ = ["STAGES", "Stages"]

STAGES = {
    "lateness": "how late a tick began after its slot",
    "capture_age": "age of the oldest message when a plan was begun on it",
    "queue": "from asking for a plan until it was begun",
    "preprocess": "decoding and preparing what the policy reads",
    "model": "the policy",
    "post": "from actions to a motion that has passed the gate",
    "framework": "a tick from its slot to its message, less the policy",
    "publish": "encoding and sending the message",
}


class Stages:
    """A histogram of seconds for each of `STAGES`.

    Args:
        now: monotonic s, for the last minute.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.histograms = {stage: Histogram(now) for stage in STAGES}

    def record(self, stage: str, seconds: float) -> None:
        """Count a sample of `stage`."""
        self.histograms[stage].record(seconds)

    def summary(self, *, last_minute: bool = False) -> dict[str, dict[str, float]]:
        """Of each stage that has samples: ``p50_ms``, ``p90_ms``, ``p99_ms``, ``p999_ms``,
        ``max_ms`` (of the whole run) and ``n``."""
        names, shares = ("p50_ms", "p90_ms", "p99_ms", "p999_ms"), (0.5, 0.9, 0.99, 0.999)
        told = {}
        for stage, histogram in self.histograms.items():
            if histogram.count:
                quantiles = histogram.quantiles(shares, last_minute=last_minute)
                told[stage] = {
                    **{n: 1e3 * q for n, q in zip(names, quantiles, strict=True)},
                    "max_ms": 1e3 * histogram.largest,
                    "n": float(histogram.count),
                }
        return told
