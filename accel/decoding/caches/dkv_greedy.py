"""dKV-Cache-Greedy: a pass is over a handful of slots, whatever the length of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from fastloop.accel.decoding.caches.cache import Plan
from fastloop.accel.decoding.caches.progress import Progress
from fastloop.accel.decoding.commits.commit import leading

__all__ = ["DKVGreedy"]


@dataclass(frozen=True)
class DKVGreedy:
    """Read are the slot that comes next, its open neighbors, and the one that was just written.

    Which comes next is drawn beforehand, because it has to be known before the pass (Ma et al.
    2025); so each pass writes one slot of every row, whatever the commit policy. The first pass of
    a window and every `refresh`-th are over everything.

    Attributes:
        refresh: passes from one over everything to the next; 1 keeps nothing.
        neighbors: open slots next to the one that comes next, from left and right by turns.
        seed: of the order.
    """

    refresh: int = 2
    neighbors: int = 4
    seed: int = 0

    name: ClassVar[str] = "dkv_greedy"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.refresh < 1 or self.neighbors < 0:
            raise ValueError(
                f"refresh counts passes and neighbors counts slots, got {self.refresh} and "
                f"{self.neighbors}"
            )

    def __call__(self, progress: Progress) -> Plan:
        """See `Cache`."""
        open, candidates = progress.open, progress.open & progress.window
        drawn = pad(self.order(open.shape[1] - progress.lead), (progress.lead, 0))
        drawn = drawn.to(open.device).expand(open.shape)
        following = leading(drawn.masked_fill(~candidates, -1), 1) & candidates
        rank = open.cumsum(1)
        away = (rank - (rank * following).sum(1, keepdim=True)).abs()
        away = away.masked_fill(~open | following, open.shape[1])
        near = leading(-away, self.neighbors) & open
        anew = (progress.since % self.refresh == 0)[:, None]
        return Plan(following | near | progress.recent | anew, writable=following)

    def order(self, slots: int) -> torch.Tensor:
        """Of the slots of an answer (n,) int64, the higher the sooner."""
        return torch.randperm(slots, generator=torch.Generator().manual_seed(self.seed))
