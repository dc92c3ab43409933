"""The contract of block caches: a denoiser as a list of residual branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Branch", "ResidualStack"]


@dataclass(frozen=True)
class Branch:
    """One value that is added to the stream.

    Attributes:
        name: unique in its stack, such as `layers.3.ffn`.
        layer: index of the layer that it belongs to.
        kind: `sa` (self-attention), `ca` (cross-attention), `ffn`, ...; the kind `ffn` is what
            the Bubbling Union looks for.
    """

    name: str
    layer: int
    kind: str


class ResidualStack(Protocol):
    """A denoiser that answers step k with `finish(begin(x) + sum of branches)`.

    A stack whose branches have gates (adaLN-Zero) multiplies each value by a gate that belongs to
    the step before it is added: `add` does it, and what is cached is the value without the gate.

    Every branch reads the stream as the branches before it left it. The stack is a pure function
    of its arguments: whatever is constant over one chunk lives in the context, not on the stack.
    The context is opaque to the caller.
    """

    @property
    def branches(self) -> Sequence[Branch]:
        """The residual branches in the order of execution."""
        ...

    @property
    def shared(self) -> int:
        """Projections of time and condition that a chunk reads from a table, or makes once, and
        that the network as published makes at every step."""
        ...

    @property
    def gated(self) -> bool:
        """Whether `add` is more than an addition."""
        ...

    def context(self, cond: torch.Tensor | None) -> Any:
        """What is computed once per chunk from `cond` (B, O, D)."""
        ...

    def begin(self, x: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The stream (B, S, E) of the sample `x` (B, T, A) at step k; always runs."""
        ...

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The value (B, S, E) of branch i on the stream `h` at step k; a new tensor."""
        ...

    def add(self, i: int, h: torch.Tensor, r: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The stream with the value `r` of branch i added; a new tensor."""
        ...

    def finish(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The network's output (B, T, A) of the stream after all branches; always runs."""
        ...
