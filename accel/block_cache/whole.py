"""A whole network as one branch, for accelerators that skip entire evaluations (ZEUS)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from fastloop.accel.block_cache.stack import Branch, ResidualStack

__all__ = ["WholeStack"]


class WholeStack:
    """The network of another stack, behind one branch: a `ResidualStack`.

    The stream holds the sample, and the network's output beside it once the branch has added it.

    Args:
        inner: the network.
    """

    branches = (Branch("network", 0, "network"),)
    gated = False

    def __init__(self, inner: ResidualStack) -> None:
        self.inner = inner
        self.shared = inner.shared

    def context(self, cond: torch.Tensor | None) -> Any:
        """See `ResidualStack.context`."""
        return self.inner.context(cond)

    def begin(self, x: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The sample with room for the output: (B, T, 2 A)."""
        return pad(x, (0, x.shape[-1]))

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The network's output in the second half."""
        width = h.shape[-1] // 2
        stream = self.inner.begin(h[..., :width], k, ctx)
        for n in range(len(self.inner.branches)):
            value = self.inner.branch(n, stream, k, ctx)
            stream = self.inner.add(n, stream, value, k, ctx)
        return pad(self.inner.finish(stream, k, ctx), (width, 0))

    def add(self, i: int, h: torch.Tensor, r: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """See `ResidualStack.add`."""
        return h + r

    def finish(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The network's output, as it is or as it is forecast."""
        return h[..., h.shape[-1] // 2 :]
