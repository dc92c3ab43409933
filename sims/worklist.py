"""The fixed list of episodes of a run, each of which is run to its end exactly once."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from fastloop.sims.base import SimState
from fastloop.sims.summary import Key

__all__ = ["WorkItem", "WorkList"]


@dataclass(frozen=True)
class WorkItem:
    """One episode to run.

    Attributes:
        task: names the simulator.
        seed: of the reset; (task, seed) identifies the episode, in pairs and on resume.
        initial_state: restored after the reset, where the engine can.
    """

    task: str
    seed: int
    initial_state: SimState | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        """(task, seed)."""
        return self.task, self.seed

    @cached_property
    def episode(self) -> int:
        """The number that keys the policy's noise: of the item alone, wherever it runs."""
        digest = hashlib.blake2b(f"{self.task}/{self.seed}".encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big")


class WorkList:
    """Hands out the items in order and keeps account of them.

    Args:
        items: all episodes of the run.
        finished: those that an earlier process of this run has finished.
        retries: how often an item whose simulator broke is tried again.

    Raises:
        ValueError: when two items have the same task and seed.
    """

    def __init__(
        self, items: Iterable[WorkItem], *, finished: Collection[Key] = (), retries: int = 0
    ) -> None:
        self.items = tuple(items)
        self.retries = retries
        twice = [key for key, n in Counter(item.key for item in self.items).items() if n > 1]
        if twice:
            raise ValueError(f"the work list has more than one episode of {twice[:5]}")
        self.finished = {item.key for item in self.items} & set(finished)
        self.failures: Counter[Key] = Counter()
        self._waiting = deque(item for item in self.items if item.key not in self.finished)

    def take(self) -> WorkItem | None:
        """The next item to run, None when all have been handed out."""
        return self._waiting.popleft() if self._waiting else None

    def retry(self, item: WorkItem) -> bool:
        """Count a failure of `item`; whether it was put back to be tried again."""
        self.failures[item.key] += 1
        again = self.failures[item.key] <= self.retries
        if again:
            self._waiting.appendleft(item)
        return again

    def finish(self, item: WorkItem) -> None:
        """Count `item` as done."""
        assert item.key not in self.finished, f"{item.key} ended twice"
        self.finished.add(item.key)

    @property
    def missing(self) -> tuple[WorkItem, ...]:
        """Items that have not ended yet."""
        return tuple(item for item in self.items if item.key not in self.finished)
