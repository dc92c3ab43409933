"""How far the rows of an answer are, as caches see it."""

from __future__ import annotations

import torch

__all__ = ["Progress"]


class Progress:
    """B rows over N slots: those of the answer, behind those of a prompt that is read with it.

    Each row has a clock of its own, so that none depends on how long others take.

    Attributes:
        lead: slots of that prompt.
        open: (B, N) bool, slots that hold the mask id.
        window: (B, N) bool, slots in a run, of which the open ones may be written after the next
            pass; none in rows that wait or are done.
        written: (B, N) int64, the row's pass after which a slot was written, -1 where it stood
            from the start.
        passes: (B,) int64, of the row so far.
        since: (B,) int64, passes of the row since its window was renewed, 0 for the next one if
            that is the first.
        start, stop: (B,) int64, from where the window began in the pass before (as it begins now
            where it was renewed) to where it ends now: what may have been written since.
    """

    def __init__(self, rows: int, lead: int, answer: int, device: torch.device | str) -> None:
        self.lead, slots = lead, lead + answer
        self.open = torch.zeros(rows, slots, dtype=torch.bool, device=device)
        self.window = self.open
        self.written = torch.full((rows, slots), -1, device=device)
        self.passes = torch.zeros(rows, dtype=torch.int64, device=device)
        self.since, self.start, self.stop, self._first = (self.passes.clone() for _ in range(4))
        self._slots = torch.arange(slots, device=device)

    def look(self, open: torch.Tensor, window: torch.Tensor, renewed: torch.Tensor) -> None:
        """Where the rows stand before the next pass.

        Args:
            open, window: (B, N) bool, as above.
            renewed: (B or 1,) bool, whether the window is a new one, and what lies outside of it
                is to be read again.
        """
        self.open, self.window = open, window
        first = window.long().argmax(1)
        self.since = torch.where(renewed, 0, self.since)
        self.start = torch.where(renewed, first, self._first)
        self.stop = torch.where(window, self._slots + 1, 0).amax(1)
        self._first = first

    def passed(self, wrote: torch.Tensor) -> None:
        """A pass was made, by rows with a window, after which slots (B, N) bool were written."""
        self.written = torch.where(wrote, self.passes[:, None], self.written)
        on = self.window.any(1)
        self.passes, self.since = self.passes + on, self.since + on

    @property
    def recent(self) -> torch.Tensor:
        """(B, N) bool, slots that the row wrote after its last pass."""
        return (self.written == self.passes[:, None] - 1) & (self.written >= 0)

    def within(self, before: int, after: int) -> torch.Tensor:
        """(B, N) bool, slots from `before` slots ahead of `start` up to `after` behind `stop`."""
        start, stop = self.start[:, None] - before, self.stop[:, None] + after
        return (self._slots >= start) & (self._slots < stop)
