"""Where an answer may be written next: its blocks in their order, or a window that slides on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from fastloop.accel.decoding.canvas import Canvas

__all__ = ["BlockWindow", "SlidingWindow", "Window"]


class Window(Protocol):
    """A pure function of what is open.

    An answer is cut into spans; all rows fill one before any begins the next.

    Attributes:
        name: in reports, behind the cache's.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]

    def cut(self, canvas: Canvas) -> Canvas:
        """The canvas with spans for blocks."""
        ...

    def __call__(self, span: torch.Tensor, open: torch.Tensor) -> torch.Tensor:
        """(B, n) bool, a run of slots of which the open ones may be written next.

        Args:
            span: (n,) bool, what is being filled.
            open: (B, n) bool, open slots of that span; a row without any gets no window.
        """
        ...

    def epoch(self, written: torch.Tensor) -> torch.Tensor:
        """(B,) int64 of how many slots (B,) were written: when it or the span changes, keys outside
        of the window are to be read again."""
        ...


@dataclass(frozen=True)
class BlockWindow:
    """The blocks of the canvas (LLaDA's semi-autoregressive decoding)."""

    name: ClassVar[str] = ""

    def cut(self, canvas: Canvas) -> Canvas:
        """See `Window`: as it is."""
        return canvas

    def __call__(self, span: torch.Tensor, open: torch.Tensor) -> torch.Tensor:
        """See `Window`."""
        return span & open.any(1, keepdim=True)

    def epoch(self, written: torch.Tensor) -> torch.Tensor:
        """See `Window`."""
        return torch.zeros_like(written)


@dataclass(frozen=True)
class SlidingWindow:
    """From the first open slot on, wherever that is, as deferred commitment decoding has it.

    DCD (2026). What is unsure at the end of a block can wait here until its right neighbors are
    told; blocks of the canvas say nothing.

    Attributes:
        masks: open slots in the window at most.
        slots: its length at most.
        renew: keys outside of it are to be read again after every so many slots.
    """

    masks: int = 16
    slots: int = 128
    renew: int = 16

    name: ClassVar[str] = "sliding"

    def __post_init__(self) -> None:
        if not 1 <= self.masks <= self.slots or self.renew < 1:
            raise ValueError(
                f"a window has open slots (1 <= masks <= slots) and is renewed after so many, got "
                f"masks {self.masks}, slots {self.slots}, renew {self.renew}"
            )

    def cut(self, canvas: Canvas) -> Canvas:
        """See `Window`: all in one."""
        return replace(canvas, block=torch.zeros_like(canvas.block))

    def __call__(self, span: torch.Tensor, open: torch.Tensor) -> torch.Tensor:
        """See `Window`."""
        count, first = open.cumsum(1), open.long().argmax(1, keepdim=True)
        near = torch.arange(open.shape[1], device=open.device) < first + self.slots
        return (count >= 1) & (count <= self.masks) & near

    def epoch(self, written: torch.Tensor) -> torch.Tensor:
        """See `Window`."""
        return written // self.renew
