"""How the loop reads time: monotonic seconds for budgets, nanoseconds since 1970 for stamps."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ToldClock", "VirtualClock", "WallClock"]


class Clock(Protocol):
    """Two readings that never mix: budgets come from `now`, the age of a stamp from `wall_ns`."""

    def now(self) -> float:
        """Monotonic seconds; they begin anywhere and never go back."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, as in message stamps; may jump when a clock is set."""
        ...

    def sleep_until(self, t: float) -> None:
        """Wait until `now()` is `t`; returns at once when it has passed, and after a moment where
        time stands still."""
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


class ToldClock:
    """Time as somebody else tells it, on ``/clock`` for instance (``use_sim_time`` of ROS).

    Between two words it stands still, and before the first one it is 0. When it is told to go back,
    as a bag that begins anew does, stamps go back and `now` stands still.

    Args:
        patience_s: real seconds that a wait lasts at most, so that who waits can be stopped.
    """

    def __init__(self, patience_s: float = 0.1) -> None:
        self.patience_s = patience_s
        self._changed = threading.Condition()
        self._wall_ns = 0
        self._passed_ns = 0

    def tell(self, wall_ns: int) -> None:
        """It is `wall_ns` nanoseconds after 1970 began."""
        with self._changed:
            if self._wall_ns:
                self._passed_ns += max(0, wall_ns - self._wall_ns)
            self._wall_ns = wall_ns
            self._changed.notify_all()

    def now(self) -> float:
        """Seconds since the first word."""
        return self._passed_ns / 1e9

    def wall_ns(self) -> int:
        """As it was told last."""
        return self._wall_ns

    def sleep_until(self, t: float) -> None:
        """Wait for the word."""
        with self._changed:
            self._changed.wait_for(lambda: self.now() >= t, self.patience_s)


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
