"""dKV-Cache-Decode: a token's key is kept once the token itself, and no mask, was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["DKVDecode"]


@dataclass(frozen=True)
class DKVDecode:
    """Read are all slots that are open and those that the last pass wrote (Ma et al. 2025).

    The first two passes of a window and every `refresh`-th are over everything.

    Attributes:
        refresh: passes from one over everything to the next; 1 keeps nothing.
    """

    refresh: int = 8

    name: ClassVar[str] = "dkv_decode"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise ValueError(f"refresh counts passes, got {self.refresh}")

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        since = progress.since
        anew = (since <= 1) | (since % self.refresh == 0)
        return Plan(progress.open | progress.recent | anew[:, None])
