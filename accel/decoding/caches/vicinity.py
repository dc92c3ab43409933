"""Vicinity refresh of dInfer: the window is read together with what lies around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["VicinityCache"]


@dataclass(frozen=True)
class VicinityCache:
    """Everything is read at first and when a window is renewed, then the window and its vicinity.

    dInfer (Ma et al. 2025).

    Attributes:
        before, after: how many slots ahead of the window and behind it.
        warmup: passes at the start of an answer that are over everything.
        refresh: passes of a window from one over everything to the next; None for no other.
    """

    before: int = 16
    after: int = 16
    warmup: int = 4
    refresh: int | None = None

    name: ClassVar[str] = "vicinity_cache"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        every = 1 if self.refresh is None else self.refresh
        if min(self.before, self.after, self.warmup) < 0 or every < 1:
            raise ValueError(
                f"before and after count slots, warmup and refresh passes, got {self.before}, "
                f"{self.after}, {self.warmup} and {self.refresh}"
            )

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        anew = (progress.since == 0) | (progress.passes < self.warmup)
        if self.refresh is not None:
            anew = anew | (progress.since % self.refresh == 0)
        return Plan(progress.within(self.before, self.after) | anew[:, None])
