"""The transformer denoiser as a list of residual branches, for block caches.

What does not change is computed ahead, where that is exact: the time token of all K steps when the
stack is built; and with the MLP condition encoder, which treats every token by itself, also the
time token's keys and values, and those of the observation tokens once per chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from fastloop.accel.block_cache.stack import Branch
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

__all__ = ["TransformerStack"]


class TransformerStack:
    """`TransformerForDiffusion` in evaluation mode, branch by branch: a `ResidualStack`.

    It reads the network's own weights. Its tables belong to the weights, device and dtype that
    the network had at construction; build it again when they change.

    Args:
        net: any of the three forms.
        timesteps: (K,) of the sampler.
    """

    gated = False

    @torch.no_grad()
    def __init__(self, net: TransformerForDiffusion, timesteps: torch.Tensor) -> None:
        self.net = net
        time = net.time_emb(timesteps.to(net.pos_emb.device)).to(net.pos_emb.dtype)  # (K, E)
        layers: Any = (net.encoder if net.decoder is None else net.decoder).layers
        self.shared = len(time)
        self._memory: _SplitMemory | _MixedMemory | None = None
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
        for index, layer in enumerate(layers):
            calls = {"sa": partial(_self_attention, layer, net.mask)}
            if self._memory is not None:
                calls["ca"] = partial(
                    _cross_attention, layer, net.memory_mask, partial(self._memory.keys, index)
                )
            norm = layer.norm2 if self._memory is None else layer.norm3
            calls["ffn"] = partial(_feed_forward, layer, norm)
            self.branches += [Branch(f"layers.{index}.{kind}", index, kind) for kind in calls]
            self._calls += calls.values()

    def context(self, cond: torch.Tensor | None) -> Any:
        """What cross-attention reads in one chunk; None without a decoder."""
        return None if self._memory is None else self._memory.context(cond)

    def begin(self, x: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The embedded sample (B, T, E); without a decoder (B, 1 + T, E), the time token first."""
        tokens = linear(x, self.net.input_emb.weight, self.net.input_emb.bias)
        tokens = tokens + self._position[:, : x.shape[1]]
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
        return linear(_norm(self.net.ln_f, stream), self.net.head.weight, self.net.head.bias)


class _SplitMemory:
    """Memory whose tokens are encoded one by one: time from a table, observations per chunk."""

    def __init__(self, net: TransformerForDiffusion, time: torch.Tensor) -> None:
        self.net = net
        self.attentions = [layer.multihead_attn for layer in net.decoder.layers]
        tokens = net.encoder(time[:, None] + net.cond_pos_emb[:, :1])  # (K, 1, E)
        # (K, L, 2, 1, H, 1, D)
        self.time = torch.stack([_keys(a, tokens) for a in self.attentions], dim=0)
        self.time = self.time.permute(2, 0, 1, 3, 4, 5)[:, :, :, None]

    def context(self, cond: torch.Tensor | None) -> list[torch.Tensor] | None:
        """Keys and values (2, B, H, O, D) of the observations for each layer."""
        if self.net.cond_obs_emb is None:
            return None
        tokens = self.net.encoder(self.net.cond_obs_emb(cond) + self.net.cond_pos_emb[:, 1:])
        return [_keys(attention, tokens) for attention in self.attentions]

    def keys(self, layer: int, k: int, ctx: list[torch.Tensor] | None, batch: int) -> torch.Tensor:
        """Keys and values (2, B, H, M, D) of one layer at step k."""
        time = self.time[k, layer].expand(-1, batch, -1, -1, -1)
        return time if ctx is None else torch.cat([time, ctx[layer]], dim=3)


class _MixedMemory:
    """Memory whose encoder mixes time and observations: all K steps encoded once per chunk."""

    def __init__(self, net: TransformerForDiffusion, time: torch.Tensor) -> None:
        self.net = net
        self.attentions = [layer.multihead_attn for layer in net.decoder.layers]
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
        return _keys(self.attentions[layer], ctx[k]).expand(-1, batch, -1, -1, -1)


def _self_attention(
    layer: Any, mask: torch.Tensor | None, h: torch.Tensor, k: int, ctx: Any
) -> torch.Tensor:
    attention = layer.self_attn
    qkv = linear(_norm(layer.norm1, h), attention.in_proj_weight, attention.in_proj_bias)
    q, keys, values = _split_heads(qkv, 3, attention.num_heads)
    return _attend(attention, q, keys, values, mask)


def _cross_attention(
    layer: Any,
    mask: torch.Tensor | None,
    memory: Callable[[int, Any, int], torch.Tensor],
    h: torch.Tensor,
    k: int,
    ctx: Any,
) -> torch.Tensor:
    attention, E = layer.multihead_attn, h.shape[-1]
    q = linear(_norm(layer.norm2, h), attention.in_proj_weight[:E], attention.in_proj_bias[:E])
    (q,) = _split_heads(q, 1, attention.num_heads)
    keys, values = memory(k, ctx, len(h))
    return _attend(attention, q, keys, values, mask)


def _feed_forward(
    layer: Any, norm: nn.LayerNorm, h: torch.Tensor, k: int, ctx: Any
) -> torch.Tensor:
    hidden = gelu(linear(_norm(norm, h), layer.linear1.weight, layer.linear1.bias))
    return linear(hidden, layer.linear2.weight, layer.linear2.bias)


def _attend(
    attention: nn.MultiheadAttention,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of (B, H, S, D) queries, merged and projected to (B, S, E)."""
    heads = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    projection = attention.out_proj
    return linear(heads.transpose(1, 2).flatten(2), projection.weight, projection.bias)


def _keys(attention: nn.MultiheadAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Keys and values (2, B, H, M, D) of memory tokens (B, M, E)."""
    E = tokens.shape[-1]
    packed = linear(tokens, attention.in_proj_weight[E:], attention.in_proj_bias[E:])
    return _split_heads(packed, 2, attention.num_heads)


def _split_heads(packed: torch.Tensor, parts: int, heads: int) -> torch.Tensor:
    """(B, S, parts H D) as (parts, B, H, S, D)."""
    return packed.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def _norm(norm: nn.LayerNorm, h: torch.Tensor) -> torch.Tensor:
    return layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
