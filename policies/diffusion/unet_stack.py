"""The U-Net denoiser as one residual branch, for block caches: DeepCache on the skip that is live.

DeepCache (Ma et al. 2024) keeps what comes up from the deep levels of a U-Net and runs only the
shallow ones on the other steps. This U-Net never reads its full-resolution skip, so the shallowest
skip that the cut can be made at is that of level 1: everything below it is the branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, mish, pad

from fastloop.accel.block_cache.stack import Branch
from fastloop.policies.diffusion.unet import ConditionalResidualBlock1D, ConditionalUnet1D

__all__ = ["FilmTable", "UnetStack"]

SHALLOW_DOWN, DEEP, SHALLOW_UP = range(3)


class UnetStack:
    """`ConditionalUnet1D` in evaluation mode: a `ResidualStack` with the one branch `deep`.

    The stream (B, S, E) has half the horizon's tokens and two halves of channels: what comes up
    from the deep levels, which is zero before the branch and what the branch adds, and the skip of
    level 1, which the branch reads and adds nothing to. So the stream after the branch is the
    concatenation that the last upward level takes.

    It reads the network's own weights, but for those of the condition, which are in a `FilmTable`.
    That table belongs to the weights, device and dtype that the network had at construction; build
    the stack again when they change.

    Args:
        net: of two levels or more, without local conditions.
        timesteps: (K,) of the sampler.

    Raises:
        ValueError: the network has no live skip, or takes local conditions.
    """

    gated = False

    def __init__(self, net: ConditionalUnet1D, timesteps: torch.Tensor) -> None:
        if net.local_cond_dim is not None:
            raise ValueError(
                f"block caches need a U-Net whose condition is one vector, this one also takes "
                f"{net.local_cond_dim} local conditions at every action; use accel=none"
            )
        if len(net.down_modules) < 2:
            raise ValueError(
                "block caches need a U-Net of 2 levels or more, this one has 1: its only skip is "
                "never read, so without the deep path the answer would ignore the sample; use "
                "accel=none"
            )
        self.net = net
        self.branches = [Branch("deep", 0, "deep")]
        levels, ups = list(net.down_modules), list(net.up_modules)
        parts = [levels[:2], [*levels[2:], net.mid_modules, *ups[:-1]], ups[-1:]]
        self.film = FilmTable(
            [[block for pair in part for block in pair[:2]] for part in parts],
            _embed_steps(net, timesteps),
        )
        self.shared = (len(timesteps) - 1) * sum(map(len, parts)) * 2

    def context(self, cond: torch.Tensor | None) -> Any:
        """What the condition (B, O, D) adds to every FiLM row in one chunk; see `FilmTable`."""
        if self.net.global_cond_dim is None:
            return self.film.context(None)
        assert cond is not None, "this network was trained with a condition"
        return self.film.context(cond.flatten(1))

    def rows(self, part: int, k: int, ctx: Any) -> Iterator[torch.Tensor]:
        """See `FilmTable.rows`."""
        return self.film.rows(part, k, ctx)

    def level(
        self, blocks: nn.ModuleList, x: torch.Tensor, film: Iterator[torch.Tensor], ctx: Any
    ) -> torch.Tensor:
        """The features (B, C', T) of a level, of what comes to it (B, C, T)."""
        return _pair(blocks, x, film)

    def begin(self, x: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The sample (B, T, A) through levels 0 and 1: (B, T / 2, 2 C), the first half zeros.

        Raises:
            ValueError: the levels cannot halve T.
        """
        if x.shape[1] % self.net.stride:
            raise ValueError(
                f"this U-Net halves the horizon {len(self.net.down_modules) - 1} times: it must be "
                f"a multiple of {self.net.stride}, got {x.shape[1]}"
            )
        film = self.rows(SHALLOW_DOWN, k, ctx)
        first, second = self.net.down_modules[:2]
        skip = _pair(second, first[2](self.level(first, x.mT, film, ctx)), film)
        return pad(skip, (0, 0, skip.shape[1], 0)).mT

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """What the levels below make of the skip: (B, T / 2, 2 C), the second half zeros."""
        film = self.rows(DEEP, k, ctx)
        x = self.net.down_modules[1][2](h.chunk(2, dim=-1)[1].mT)
        skips = []
        for level in self.net.down_modules[2:]:
            skips.append(self.level(level, x, film, ctx))
            x = level[2](skips[-1])
        x = self.level(self.net.mid_modules, x, film, ctx)
        for level in self.net.up_modules[:-1]:
            x = level[2](self.level(level, torch.cat([x, skips.pop()], dim=1), film, ctx))
        return pad(x, (0, 0, 0, x.shape[1])).mT

    def add(self, i: int, h: torch.Tensor, r: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """See `ResidualStack.add`."""
        return h + r

    def finish(self, h: torch.Tensor, k: int, ctx: Any) -> torch.Tensor:
        """The output (B, T, input_dim)."""
        last = self.net.up_modules[-1]
        x = last[2](self.level(last, h.mT, self.rows(SHALLOW_UP, k, ctx), ctx))
        return self.net.final_conv(x).mT


class FilmTable:
    """What the condition says to every residual block, from two sums that are each made once.

    A block is told W mish(cat[step, cond]) + b. Mish takes each number by itself, so that this is
    W_step mish(step), a table over the K steps, and W_cond mish(cond) + b, once per chunk.

    Args:
        parts: the blocks of each part of the network in the order of execution; a part's rows are
            read together.
        steps: (K, D) embedded diffusion steps, the head of the condition.
    """

    @torch.no_grad()
    def __init__(
        self, parts: Sequence[Sequence[ConditionalResidualBlock1D]], steps: torch.Tensor
    ) -> None:
        linears = [block.cond_encoder[1] for part in parts for block in part]
        weight = torch.cat([layer.weight for layer in linears])
        self.steps = linear(mish(steps), weight[:, : steps.shape[1]])  # (K, F)
        self.weight = weight[:, steps.shape[1] :].contiguous()
        self.bias = torch.cat([layer.bias for layer in linears])
        self.widths = [[block.cond_encoder[1].out_features for block in part] for part in parts]
        borders = pairwise(accumulate(map(sum, self.widths), initial=0))
        self.columns = [slice(first, last) for first, last in borders]

    def context(self, cond: torch.Tensor | None) -> torch.Tensor:
        """What is the same at every step of a chunk: (B, F) of `cond` (B, D), (1, F) of None."""
        return self.bias[None] if cond is None else linear(mish(cond), self.weight, self.bias)

    def rows(self, part: int, k: int, ctx: torch.Tensor) -> Iterator[torch.Tensor]:
        """For each block of a part its shift, or scale and shift, (B, channels, 1) at step k."""
        columns = self.columns[part]
        row = self.steps[k, columns] + ctx[:, columns]
        return iter(row[..., None].split(self.widths[part], dim=1))


def _embed_steps(net: ConditionalUnet1D, timesteps: torch.Tensor) -> torch.Tensor:
    """(K, D) of timesteps (K,)."""
    sinusoid, *layers = net.diffusion_step_encoder
    weight = layers[0].weight
    with torch.no_grad():
        return nn.Sequential(*layers)(sinusoid(timesteps.to(weight.device)).to(weight.dtype))


def _pair(blocks: nn.ModuleList, x: torch.Tensor, film: Iterator[torch.Tensor]) -> torch.Tensor:
    """The two residual blocks of a level, each on the next row of `film`."""
    for block in blocks[:2]:
        out, row = block.blocks[0](x), next(film)
        if block.cond_predict_scale:
            scale, shift = row.chunk(2, dim=1)
            out = scale * out + shift
        else:
            out = out + row
        x = block.blocks[1](out) + block.residual_conv(x)
    return x
