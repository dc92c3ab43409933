"""Nothing kept: every pass is over everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["NoCache"]


@dataclass(frozen=True)
class NoCache:
    """What all others are compared with."""

    name: ClassVar[str] = "uncached"
    exact: ClassVar[bool] = True

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        return Plan(torch.ones_like(progress.open))
