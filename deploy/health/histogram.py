"""Latencies in log-spaced buckets: constant memory, and one addition a sample."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from time import monotonic

__all__ = ["BOUNDS", "Histogram"]

BOUNDS = tuple(1e-6 * 2 ** (k / 4) for k in range(105))
"""Upper bounds of the buckets in s, four to an octave, 1 us to 67 s; one more bucket is above."""

SLICE_S = 10.0
SLICES = 6


class Histogram:
    """Samples of the whole run and of its last minute.

    A quantile is taken as if samples lay evenly in their bucket, as Prometheus does, at most 19 %
    from the sample, and is never above the largest. One thread may record; any may read.

    Args:
        now: monotonic s.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.largest = 0.0
        self._slices: list[tuple[int, list[int]]] = []

    def record(self, seconds: float) -> None:
        """Count a sample."""
        place = bisect_left(BOUNDS, seconds)
        self.counts[place] += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)
        number = int(self._now() / SLICE_S)
        if not self._slices or self._slices[-1][0] != number:
            fresh = (number, [0] * len(self.counts))
            self._slices = [*self._slices[-(SLICES - 1) :], fresh]
        self._slices[-1][1][place] += 1

    @property
    def count(self) -> int:
        """Samples of the run."""
        return sum(self.counts)

    def quantiles(self, shares: Sequence[float], *, last_minute: bool = False) -> list[float]:
        """Seconds that the shares (0 to 1) of samples stay below; NaN where there are none."""
        counts = self._recent() if last_minute else self.counts
        total = sum(counts)
        if total == 0:
            return [math.nan] * len(shares)
        return [self._quantile(counts, share * total) for share in shares]

    def _quantile(self, counts: Sequence[int], rank: float) -> float:
        below = 0
        for place, count in enumerate(counts):
            below += count
            if count and below >= rank:
                if place == len(BOUNDS):
                    break
                low, high = (BOUNDS[place - 1] if place else 0.0), BOUNDS[place]
                inside = 1 - (below - rank) / count
                return min(self.largest, low + inside * (high - low))
        return self.largest

    def _recent(self) -> list[int]:
        oldest = int(self._now() / SLICE_S) - SLICES + 1
        recent = [counts for number, counts in self._slices if number >= oldest]
        return [sum(column) for column in zip(*recent, strict=True)] if recent else []
