"""Branches of the transformer denoiser by fused kernels, in place of torch's own operations.

They take the network's own weights, and have no derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastloop.accel.kernels.choose import form_of
from fastloop.accel.kernels.parameters import LayerNorm, Linear
from fastloop.accel.kernels.reused_run import Ends
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

__all__ = ["FusedCrossAttention", "FusedFeedForward", "FusedSelfAttention", "ends_of"]


class FusedSelfAttention:
    """The self-attention of a layer, see `fastloop.accel.kernels.attention`."""

    def __init__(self, layer: Any, mask: torch.Tensor | None) -> None:
        attention = layer.self_attn
        self.norm, self.mask, self.heads = _norm(layer.norm1), mask, attention.num_heads
        self.packed = Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = _linear(attention.out_proj)
        self.kernel = form_of("attention", self.out.weight).self_attention

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        value: torch.Tensor = self.kernel(
            h, self.norm, self.packed, self.out, self.heads, self.mask
        )
        return value


class FusedCrossAttention:
    """The cross-attention of layer `index` to what `memory` keeps."""

    def __init__(self, layer: Any, mask: torch.Tensor | None, memory: Any, index: int) -> None:
        attention, E = layer.multihead_attn, layer.multihead_attn.embed_dim
        self.norm, self.mask, self.memory, self.index = _norm(layer.norm2), mask, memory, index
        self.query = Linear(attention.in_proj_weight[:E], attention.in_proj_bias[:E])
        self.out = _linear(attention.out_proj)
        self.kernel = form_of("attention", self.out.weight).cross_attention

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        keys, values = self.memory.keys(self.index, k, ctx, len(h))
        value: torch.Tensor = self.kernel(
            h, keys, values, self.norm, self.query, self.out, self.mask
        )
        return value


class FusedFeedForward:
    """The feed-forward branch of a layer, see `fastloop.accel.kernels.ffn`."""

    def __init__(self, layer: Any, norm: nn.LayerNorm) -> None:
        self.norm = _norm(norm)
        self.inner, self.outer = _linear(layer.linear1), _linear(layer.linear2)
        self.kernel = form_of("ffn", self.inner.weight).feed_forward

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        value: torch.Tensor = self.kernel(h, self.norm, self.inner, self.outer)
        return value


def ends_of(net: TransformerForDiffusion) -> Ends | None:
    """What stands before and after its branches; None where time is one of the tokens."""
    if net.decoder is None:
        return None
    embedding, head = _linear(net.input_emb), _linear(net.head)
    return Ends(embedding, net.pos_emb[0], _norm(net.ln_f), head)


def _norm(norm: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(norm.weight, norm.bias, norm.eps)


def _linear(layer: nn.Linear) -> Linear:
    return Linear(layer.weight, layer.bias)
