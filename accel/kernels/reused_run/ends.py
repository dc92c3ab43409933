"""What stands before and after the branches of a denoiser, and its folded form.

When every branch is reused, the stream of a token is h = W x + c with c constant but for its
polynomial in time. The final norm removes the mean of h, which centered W and c do beforehand; its
variance is then a quadratic form in x, and the head a product with x:

    output = (N W x + N c) / sqrt(x.G x + g.x + s + eps) + offset
    N = head diag(norm.weight), G = W'W / E, g = 2 W'c / E, s = c.c / E

So a step costs A x A products where the plain one costs E x A, and E is touched once a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from fastloop.accel.kernels.parameters import LayerNorm, Linear

__all__ = ["Ends", "Folded"]


class Folded(NamedTuple):
    """Weights of the folded form, float32, made in float64.

    Attributes:
        start: (T, E) position and embedding bias.
        embedding: (A, E) 2 W' / E, W centered over E.
        head: (A, E) N.
        mix: (A, A) N W.
        gram: (A, A) G.
        offset: (A,) what the norm's and the head's biases give.
    """

    start: torch.Tensor
    embedding: torch.Tensor
    head: torch.Tensor
    mix: torch.Tensor
    gram: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, eq=False)
class Ends:
    """The layers that always run; make another when a weight changes, the fold is kept.

    Attributes:
        embedding: weight (E, A), of an action token.
        position: (T, E), added to the embedded tokens.
        norm: the final one, over E.
        head: weight (A, E).
    """

    embedding: Linear
    position: torch.Tensor
    norm: LayerNorm
    head: Linear

    @cached_property
    def folded(self) -> Folded:
        """The weights of the module's formula; for `residuals` that are centered."""
        width = self.embedding.weight.double()
        width = width - width.mean(dim=0)
        head = self.head.weight.double() * self.norm.weight.double()
        E = len(width)
        folded = Folded(
            start=self.position.double() + self.embedding.bias.double(),
            embedding=2 * width.T / E,
            head=head,
            mix=head @ width,
            gram=width.T @ width / E,
            offset=self.head.weight.double() @ self.norm.bias.double() + self.head.bias.double(),
        )
        return Folded(*(tensor.float().contiguous() for tensor in folded))
