"""Dual cache of Fast-dLLM: what lies before and behind the window is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["DualCache"]


@dataclass(frozen=True)
class DualCache:
    """Everything is read when a window is renewed, then only the window.

    Fast-dLLM (Wu et al. 2025); with a sliding window and a delay also that of DCD (2026).

    Attributes:
        delay: how many slots on either side of the window are read each time too.
    """

    delay: int = 0

    name: ClassVar[str] = "dual_cache"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"delay counts slots, got {self.delay}")

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        inside = progress.within(self.delay, self.delay)
        return Plan(inside | (progress.since == 0)[:, None])
