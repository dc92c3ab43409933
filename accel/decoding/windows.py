"""Which slots are drafted and verified together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from fastloop.accel.decoding.canvas import Canvas

__all__ = ["Windows", "blocks"]


def blocks(canvas: Canvas) -> list[tuple[int, int]]:
    """Start and end of every block."""
    edges = (canvas.block.diff() != 0).nonzero().flatten() + 1
    return list(pairwise([0, *edges.tolist(), len(canvas)])) if len(canvas) else []


@dataclass(frozen=True)
class Windows:
    """What a cycle looks at when the first slot not yet read is c; tables over c = 0 ... n.

    The token of slot c always stands already: it is given, or the context's logits tell it.

    Attributes:
        lead: slots from c that stand although nobody has read them, up to the end of the window
            that c is in, when nothing else is left in that window to be drafted; else 0. They are
            read with the draft of the next window, causally, so they need no pass of their own.
        stop: end of the window, or of the next one after a lead.
        jump: the next slot after c that is to be filled, n where none is: up to there no draft is
            needed.
        before: values before slot c; n + 1 numbers.
    """

    lead: list[int]
    stop: list[int]
    jump: list[int]
    before: list[int]

    @classmethod
    def of(cls, canvas: Canvas, size: int | None) -> Windows:
        """The blocks of a canvas, or `size` slots from wherever c is."""
        n = len(canvas)
        values = (~canvas.given).tolist()
        before = [0, *accumulate(map(int, values))]
        if size is None:
            ends = [end for start, end in blocks(canvas) for _ in range(start, end)]
        else:
            ends = [min(c + size, n) for c in range(n)]
        jump = [n] * (n + 1)
        for c in range(n - 2, -1, -1):
            jump[c] = c + 1 if values[c + 1] else jump[c + 1]
        lead, stop = [0] * (n + 1), [n] * (n + 1)
        for c in range(n):
            end = ends[c]
            if jump[c] >= end:  # nothing to draft here, nor in windows that are given throughout
                while end < n and before[ends[end]] == before[end]:
                    end = ends[end]
                lead[c] = end - c
            stop[c] = ends[end] if lead[c] and end < n else end
        return cls(lead, stop, jump, before)

    def values(self, start: int, stop: int) -> int:
        """Slots to be filled from `start` up to `stop`."""
        return self.before[stop] - self.before[start]

    def unknown(self, c: int) -> int:
        """Values in the window of c (less than n) that would have to be drafted."""
        return self.values(c + 1, self.stop[c])

    def table(self, name: str, device: torch.device) -> torch.Tensor:
        """`lead`, `stop` or `jump` (n + 1,) int64 on the device."""
        return torch.tensor(getattr(self, name), device=device)
