"""The transformer denoiser as a list of residual branches, for block caches.

What does not change is computed ahead, where that is exact: the time token of all K steps when the
stack is built; and with the MLP condition encoder, which treats every token by itself, also the
time token's keys and values, and those of the observation tokens once per chunk. Weights are kept
in the order in which a product with few rows reads them fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, pad, scaled_dot_product_attention

from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.kernels.products import Packed
from fastloop.policies.diffusion.fused import (
    FusedCrossAttention,
    FusedFeedForward,
    FusedSelfAttention,
    ends_of,
)
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

__all__ = ["TransformerStack"]


class TransformerStack:
    """`TransformerForDiffusion` in evaluation mode, branch by branch: a `ResidualStack`.

    Its copies of the weights belong to the weights, device and dtype that the network had at
    construction; build it again when they change.

    Args:
        net: any of the three forms.
        timesteps: (K,) of the sampler.
        kernels: kinds of branches that run fused, `attention` and `ffn`; others are not looked at.

    Attributes:
        ends: what stands before and after the branches; None where time is one of the tokens.
    """

    gated = False

    @torch.no_grad()
    def __init__(
        self, net: TransformerForDiffusion, timesteps: torch.Tensor, kernels: Sequence[str] = ()
    ) -> None:
        time = net.time_emb(timesteps.to(net.pos_emb.device)).to(net.pos_emb.dtype)  # (K, E)
        layers: Any = (net.encoder if net.decoder is None else net.decoder).layers
        self.shared = len(time)
        self._memory: _SplitMemory | _MixedMemory | None = None
        self._embed, self._head = Packed.of(net.input_emb), Packed.of(net.head)
        self._norm = net.ln_f
        self.ends = ends_of(net)
        if net.decoder is None:
            self._first = (time + net.pos_emb[:, 0])[:, None, None]  # (K, 1, 1, E) first token
            self._position = net.pos_emb[:, 1:]
        else:
            mixed = isinstance(net.encoder, nn.TransformerEncoder)
            self._memory = (_MixedMemory if mixed else _SplitMemory)(net, time)
            self.shared += 0 if mixed else (len(time) - 1) * len(layers)  # keys and values
            self._position = net.pos_emb

        self.branches: list[Branch] = []
        self._calls: list[Callable[[torch.Tensor, int, Any], torch.Tensor]] = []
        fused = "attention" in kernels
        attention = FusedSelfAttention if fused else _SelfAttention
        crossed = FusedCrossAttention if fused else _CrossAttention
        feed_forward = FusedFeedForward if "ffn" in kernels else _FeedForward
        for index, layer in enumerate(layers):
            calls: dict[str, Any] = {"sa": attention(layer, net.mask)}
            if self._memory is not None:
                calls["ca"] = crossed(layer, net.memory_mask, self._memory, index)
            norm = layer.norm2 if self._memory is None else layer.norm3
            calls["ffn"] = feed_forward(layer, norm)
            self.branches += [Branch(f"layers.{index}.{kind}", index, kind) for kind in calls]
            self._calls += calls.values()

    def context(self, cond: torch.Tensor | None) -> Any:
        """What cross-attention reads in one chunk; None without a decoder."""
        return None if self._memory is None else self._memory.context(cond)

    def begin(self, x: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The embedded sample (B, T, E); without a decoder (B, 1 + T, E), the time token first."""
        tokens = self._embed(x) + self._position[:, : x.shape[1]]
        if self._memory is not None:
            return tokens
        return torch.cat([self._first[k].expand(len(x), -1, -1), tokens], dim=1)

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """See `ResidualStack.branch`."""
        return self._calls[i](h, k, ctx)

    def add(self, i: int, h: torch.Tensor, r: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """See `ResidualStack.add`."""
        return h + r

    def finish(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The output (B, T, output_dim)."""
        stream = h if self._memory is not None else h[:, 1:]
        return self._head(_norm(self._norm, stream))


class _SplitMemory:
    """Memory whose tokens are encoded one by one: time from a table, observations per chunk."""

    def __init__(self, net: TransformerForDiffusion, time: torch.Tensor) -> None:
        self.net = net
        self.projections = _key_projections(net)
        tokens = net.encoder(time[:, None] + net.cond_pos_emb[:, :1])  # (K, 1, E)
        tables = [_split_heads(project(tokens), 2, heads) for project, heads in self.projections]
        # (K, L, 2, 1, H, 1, D)
        self.time = torch.stack(tables).permute(2, 0, 1, 3, 4, 5)[:, :, :, None]

    def context(self, cond: torch.Tensor | None) -> _Keys | None:
        """Keys and values of the observations, the time token's place left free."""
        if self.net.cond_obs_emb is None:
            return None
        tokens = self.net.encoder(self.net.cond_obs_emb(cond) + self.net.cond_pos_emb[:, 1:])
        observed = [_split_heads(project(tokens), 2, heads) for project, heads in self.projections]
        return _Keys(pad(torch.stack(observed), (0, 0, 1, 0)))

    def keys(self, layer: int, k: int, ctx: _Keys | None, batch: int) -> torch.Tensor:
        """Keys and values (2, B, H, M, D) of one layer at step k, until another step's are asked
        for."""
        if ctx is None:
            return self.time[k, layer].expand(-1, batch, -1, -1, -1)
        if ctx.step != k:  # one copy for all layers
            ctx.step, ctx.all[..., :1, :] = k, self.time[k]
        return ctx.all[layer]


@dataclass
class _Keys:
    """Keys and values (L, 2, B, H, M, D) of all layers; the first token is the time of `step`."""

    all: torch.Tensor
    step: int | None = None


class _MixedMemory:
    """Memory whose encoder mixes time and observations: all K steps encoded once per chunk."""

    def __init__(self, net: TransformerForDiffusion, time: torch.Tensor) -> None:
        self.net = net
        self.projections = _key_projections(net)
        self.time = time[:, None, None]  # (K, 1, 1, E)

    def context(self, cond: torch.Tensor | None) -> torch.Tensor:
        """Memory (K, B, M, E)."""
        tokens = self.time
        if self.net.cond_obs_emb is not None:
            observed = self.net.cond_obs_emb(cond)
            shape = (len(tokens), *observed.shape)
            time = tokens.expand(-1, len(observed), -1, -1)
            tokens = torch.cat([time, observed.expand(shape)], dim=2)
        flat = (tokens + self.net.cond_pos_emb).flatten(0, 1)
        return self.net.encoder(flat).unflatten(0, tokens.shape[:2])

    def keys(self, layer: int, k: int, ctx: torch.Tensor, batch: int) -> torch.Tensor:
        """Keys and values (2, B, H, M, D) of one layer at step k."""
        project, heads = self.projections[layer]
        return _split_heads(project(ctx[k]), 2, heads).expand(-1, batch, -1, -1, -1)


class _SelfAttention:
    def __init__(self, layer: Any, mask: torch.Tensor | None) -> None:
        attention = layer.self_attn
        self.norm, self.mask, self.heads = layer.norm1, _aligned(mask), attention.num_heads
        self.packed = Packed(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Packed.of(attention.out_proj)

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        q, keys, values = _split_heads(self.packed(_norm(self.norm, h)), 3, self.heads)
        return self.out(_attend(q, keys, values, self.mask))


class _CrossAttention:
    def __init__(
        self,
        layer: Any,
        mask: torch.Tensor | None,
        memory: _SplitMemory | _MixedMemory,
        index: int,
    ) -> None:
        attention, E = layer.multihead_attn, layer.multihead_attn.embed_dim
        self.norm, self.mask, self.heads = layer.norm2, _aligned(mask), attention.num_heads
        self.memory, self.index = memory, index
        self.query = Packed(attention.in_proj_weight[:E], attention.in_proj_bias[:E])
        self.out = Packed.of(attention.out_proj)

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        (q,) = _split_heads(self.query(_norm(self.norm, h)), 1, self.heads)
        keys, values = self.memory.keys(self.index, k, ctx, len(h))
        return self.out(_attend(q, keys, values, self.mask))


class _FeedForward:
    def __init__(self, layer: Any, norm: nn.LayerNorm) -> None:
        self.norm = norm
        self.inner, self.outer = Packed.of(layer.linear1), Packed.of(layer.linear2)

    def __call__(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        return self.outer(gelu(self.inner(_norm(self.norm, h))))


def _key_projections(net: TransformerForDiffusion) -> list[tuple[Packed, int]]:
    """For each decoder layer what makes keys and values of memory tokens, and its heads."""
    projections = []
    for layer in net.decoder.layers:
        attention, E = layer.multihead_attn, layer.multihead_attn.embed_dim
        packed = Packed(attention.in_proj_weight[E:], attention.in_proj_bias[E:])
        projections.append((packed, attention.num_heads))
    return projections


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention of (B, H, S, D) queries, its heads merged to (B, S, E)."""
    heads = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return heads.transpose(1, 2).flatten(2)


def _aligned(mask: torch.Tensor | None) -> torch.Tensor | None:
    """`mask` with rows that begin at multiples of 8 numbers: what CUDA's attention would else copy
    it to at every call."""
    if mask is None:
        return None
    width = mask.shape[-1]
    return pad(mask, (0, -width % 8))[:, :width]


def _split_heads(packed: torch.Tensor, parts: int, heads: int) -> torch.Tensor:
    """(B, S, parts H D) as (parts, B, H, S, D)."""
    return packed.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def _norm(norm: nn.LayerNorm, h: torch.Tensor) -> torch.Tensor:
    return layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
