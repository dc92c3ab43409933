"""How often a client may ask."""

from __future__ import annotations

import time

__all__ = ["Rate", "RateError"]


class RateError(RuntimeError):
    """A client asks more often than it may; the message says when it may again."""


class Rate:
    """A bucket of requests that fills evenly; one second's worth may be asked for at once.

    Args:
        hz: requests a second; 0 for any number.
    """

    def __init__(self, hz: float) -> None:
        self.hz = hz
        self._most = max(1.0, hz)
        self._left = self._most
        self._then = time.monotonic()

    def take(self, now: float) -> None:
        """Count a request at monotonic `now`, unless it is one too many, which costs nothing.

        Raises:
            RateError: it is.
        """
        if not self.hz:
            return
        self._left = min(self._most, self._left + (now - self._then) * self.hz)
        self._then = now
        if self._left < 1:
            wait_ms = 1e3 * (1 - self._left) / self.hz
            raise RateError(
                f"at most {self.hz:g} requests a second are answered: ask again in {wait_ms:.0f} ms"
            )
        self._left -= 1
