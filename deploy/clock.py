"""How the loop reads time: monotonic seconds for budgets, nanoseconds since 1970 for stamps."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "VirtualClock", "WallClock"]


class Clock(Protocol):
    """Two readings that never mix: budgets come from `now`, the age of a stamp from `wall_ns`."""

    def now(self) -> float:
        """Monotonic seconds; they begin anywhere and never go back."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, as in message stamps; may jump when a clock is set."""
        ...

    def sleep_until(self, t: float) -> None:
        """Wait until `now()` is `t`; returns at once when it has passed."""
        ...


class WallClock:
    """The computer's own clocks.

    Args:
        spin_s: the last part of a wait that is spent asking for the time: sleeping alone wakes up
            to a millisecond late, asking costs that much of a core.
        wall_offset_ns: added to the wall clock, where a recording's past is the present.
    """

    def __init__(self, spin_s: float = 0.0, wall_offset_ns: int = 0) -> None:
        self.spin_s = spin_s
        self.wall_offset_ns = wall_offset_ns

    def now(self) -> float:
        """CLOCK_MONOTONIC: one time for every process of the machine."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """CLOCK_REALTIME, and the offset."""
        return time.time_ns() + self.wall_offset_ns

    def sleep_until(self, t: float) -> None:
        """Sleep, then spin through the last `spin_s`."""
        wait = t - self.spin_s - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        while time.monotonic() < t:
            if self.spin_s <= 0:
                time.sleep(max(0.0, t - time.monotonic()))


class VirtualClock:
    """Time that passes only when somebody waits: replay as fast as possible, and tests.

    Args:
        start_s: the first `now()`.
        wall_ns: the first `wall_ns()`.
    """

    def __init__(self, start_s: float = 0.0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now = start_s
        self._wall_offset_ns = wall_ns - round(start_s * 1e9)
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Seconds."""
        return self._now

    def wall_ns(self) -> int:
        """Nanoseconds; `set_wall` makes it jump."""
        return round(self._now * 1e9) + self._wall_offset_ns

    def sleep_until(self, t: float) -> None:
        """Let time pass to `t`; what was scheduled up to then happens on the way, in order."""
        while self._calls and self._calls[0][0] <= t:
            due, _, call = heapq.heappop(self._calls)
            self._now = max(self._now, due)
            call()
        self._now = max(self._now, t)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.sleep_until(self._now + seconds)

    def at(self, t: float, call: Callable[[], None]) -> None:
        """Have `call` happen when time passes `t`; calls of one moment keep their order."""
        heapq.heappush(self._calls, (t, next(self._order), call))

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward (or back, if negative), as a time server does."""
        self._wall_offset_ns += round(seconds * 1e9)
