"""Window-Diffusion: masks far behind the first open slots are left out of a pass altogether."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["WindowDiffusion"]


@dataclass(frozen=True)
class WindowDiffusion:
    """Three tiers of masks: the first are read and may be written, the next are seen, no others.

    Every `refresh`-th pass is over everything and writes wherever it may; those between are over
    the first `active` open slots and what was written since then, and see what is written and
    the first `buffer` open slots (Window-Diffusion 2026).

    Attributes:
        active: open slots that are read.
        buffer: open slots that are seen, as they were at the last pass over everything.
        refresh: passes from one over everything to the next; 1 keeps nothing.
    """

    active: int = 16
    buffer: int = 64
    refresh: int = 32

    name: ClassVar[str] = "window_diffusion"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.buffer or self.refresh < 1:
            raise ValueError(
                f"what is read is seen (1 <= active <= buffer), and refresh counts passes, got "
                f"active {self.active}, buffer {self.buffer}, refresh {self.refresh}"
            )

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        open, phase = progress.open, (progress.passes % self.refresh)[:, None]
        rank, anew = open.cumsum(1), phase == 0
        active = open & (rank <= self.active)
        begun = progress.passes[:, None] - phase
        late = (progress.written >= 0) & (progress.written >= begun)
        return Plan(
            active | late | anew,
            seen=~open | (rank <= self.buffer) | anew,
            writable=active | anew,
        )
