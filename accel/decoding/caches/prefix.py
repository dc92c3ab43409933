"""Prefix cache of Fast-dLLM: what lies before the window is kept, the rest is read each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["PrefixCache"]


@dataclass(frozen=True)
class PrefixCache:
    """Everything is read when a window is renewed, then only what is not before it.

    Fast-dLLM (Wu et al. 2025); with a sliding window and a delay also that of DCD (2026).

    Attributes:
        delay: how many slots before the window are read each time too.
    """

    delay: int = 0

    name: ClassVar[str] = "prefix_cache"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"delay counts slots, got {self.delay}")

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        behind = progress.within(self.delay, progress.open.shape[1])
        return Plan(behind | (progress.since == 0)[:, None])
