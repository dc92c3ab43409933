"""Ticks on an absolute schedule: never "sleep the rest", which drifts."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass
class Schedule:
    """Slot k is due at ``start + k * period_s``.

    Attributes:
        start: monotonic s of slot 0.
        period_s: between slots.
        slot: the one that runs, or ran last; -1 before the first.
        skipped: slots that were let go because the one before them overran.
    """

    start: float
    period_s: float
    slot: int = -1
    skipped: int = 0

    def __post_init__(self) -> None:
        if not self.period_s > 0:
            raise ValueError(f"a period is positive seconds, got {self.period_s}")

    def time(self, slot: int) -> float:
        """When `slot` is due, monotonic s."""
        return self.start + slot * self.period_s

    def resume(self, now: float) -> None:
        """Go on after a pause: slots that began in it were not due."""
        self.slot = max(self.slot, math.ceil((now - self.start) / self.period_s) - 1)

    def following(self, now: float) -> int:
        """Go on to the next slot and return it: one that is over half a period late is skipped, so
        that an overrun is not followed by a burst."""
        following = self.slot + 1
        behind = (now - self.time(following)) / self.period_s
        if behind > 0.5:
            skip = int(behind + 0.5)
            self.skipped += skip
            following += skip
        self.slot = following
        return following
