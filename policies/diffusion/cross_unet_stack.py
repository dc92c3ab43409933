"""The U-Net with cross-attention as two residual branches, for block caches.

Observations stay as they are while a chunk is denoised, so that the keys and values of every level
are made once a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from fastloop.accel.block_cache.stack import Branch
from fastloop.policies.diffusion.cross_unet import CrossAttention, CrossUnet1D
from fastloop.policies.diffusion.unet_stack import UnetStack

__all__ = ["CrossUnetStack"]

DEEP = 1
Memory = dict[CrossAttention, torch.Tensor]


class CrossUnetStack(UnetStack):
    """`CrossUnet1D` in evaluation mode: the stack of `ConditionalUnet1D`, whose branch `deep` comes
    with the attentions of its levels, and before it the branch `ca`, the attention of level 1.

    The stream is that of `UnetStack`; `ca` adds to the skip. The attentions above the cut, those of
    level 0 and of the last upward level, run at every step, as the convolutions there do.

    Args:
        net: of two levels or more.
        timesteps: (K,) of the sampler.

    Raises:
        ValueError: the network has no live skip.
    """

    net: CrossUnet1D

    def __init__(self, net: CrossUnet1D, timesteps: torch.Tensor) -> None:
        super().__init__(net, timesteps)
        self.branches = [Branch("ca", 0, "ca"), *self.branches]
        levels = [*net.down_modules, net.mid_modules, *net.up_modules]
        attentions: Any = [*net.down_attention, net.mid_attention, *net.up_attention]
        self.attention: dict[nn.Module, CrossAttention] = dict(zip(levels, attentions, strict=True))
        self.shared += (len(timesteps) - 1) * len(self.attention)

    def context(self, cond: torch.Tensor | None) -> Memory:
        """Keys and values (2, B, H, O, C / H) of every attention, for observations (B, O, D)."""
        assert cond is not None, "this network was trained with a condition"
        tokens = self.net.tokens(cond)
        return {attention: attention.memory(tokens) for attention in self.attention.values()}

    def rows(self, part: int, k: int, ctx: Memory) -> Iterator[torch.Tensor]:
        """See `FilmTable.rows`; observations are no part of them."""
        return self.film.rows(part, k, self.film.context(None))

    def level(
        self, blocks: nn.ModuleList, x: torch.Tensor, film: Iterator[torch.Tensor], ctx: Memory
    ) -> torch.Tensor:
        """The features (B, C', T) of a level, with what they read in the observations."""
        x = super().level(blocks, x, film, ctx)
        attention = self.attention[blocks]
        return x + attention(x, ctx[attention])

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """What level 1 reads in the observations, or what the levels below make of the skip:
        (B, T / 2, 2 C), the half that it is not added to zeros."""
        if i == DEEP:
            return super().branch(i, h, k, ctx)
        attention = self.attention[self.net.down_modules[1]]
        skip = h.chunk(2, dim=-1)[1].mT
        return pad(attention(skip, ctx[attention]).mT, (skip.shape[1], 0))
