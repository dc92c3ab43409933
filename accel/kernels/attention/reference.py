"""The attention branches in plain torch: the value that each adds to the stream."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from fastloop.accel.kernels.parameters import LayerNorm, Linear

__all__ = ["cross_attention", "self_attention"]


def self_attention(
    h: torch.Tensor,
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the normalized stream to itself.

    Args:
        h: (B, T, E) the stream.
        norm: over E.
        qkv: weight (3 E, E), queries first, then keys, then values, as `nn.MultiheadAttention`.
        out: weight (E, E).
        heads: H, a divisor of E.
        mask: (T, T), added to the scores; a row of -inf gives the projection of zeros.

    Returns:
        (B, T, E)
    """
    x = layer_norm(h, h.shape[-1:], norm.weight, norm.bias, norm.eps)
    packed = linear(x, qkv.weight, qkv.bias).reshape(*h.shape[:2], 3, heads, -1)
    q, keys, values = packed.permute(2, 0, 3, 1, 4)
    return _attend(q, keys, values, out, mask)


def cross_attention(
    h: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norm: LayerNorm,
    query: Linear,
    out: Linear,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the normalized stream to given keys and values.

    Args:
        h: (B, T, E) the stream.
        keys, values: (B, H, M, D) with E = H D.
        norm: over E.
        query, out: weights (E, E).
        mask: (T, M), as for `self_attention`.

    Returns:
        (B, T, E)
    """
    x = layer_norm(h, h.shape[-1:], norm.weight, norm.bias, norm.eps)
    q = linear(x, query.weight, query.bias).reshape(*h.shape[:2], keys.shape[1], -1)
    return _attend(q.transpose(1, 2), keys, values, out, mask)


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: Linear,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    merged = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return linear(merged.transpose(1, 2).flatten(2), out.weight, out.bias)
