"""The feed-forward branch in plain torch: the value that it adds to the stream."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, layer_norm, linear

from fastloop.accel.kernels.parameters import LayerNorm, Linear

__all__ = ["feed_forward"]


def feed_forward(h: torch.Tensor, norm: LayerNorm, inner: Linear, outer: Linear) -> torch.Tensor:
    """Two linear layers with the exact GELU between them, on the normalized stream.

    Args:
        h: (B, T, E) the stream.
        norm: over E.
        inner: weight (F, E).
        outer: weight (E, F).

    Returns:
        (B, T, E)
    """
    x = layer_norm(h, h.shape[-1:], norm.weight, norm.bias, norm.eps)
    hidden = gelu(linear(x, inner.weight, inner.bias))
    return linear(hidden, outer.weight, outer.bias)
