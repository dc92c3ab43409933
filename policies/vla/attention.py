"""Attention for training on CPUs: plain products of matrices, several times as fast there as what
torch chooses for a mask that is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from fastloop.extras import require
from fastloop.policies.vla.masks import EVERYTHING, Parts

__all__ = ["biased_attention", "trains_fast"]

NAME = "fastloop_biased"
HIDDEN = -1e30  # of bfloat16, too


def biased_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    scaling: float,
    parts: Parts = EVERYTHING,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention under what is added to its scores; as transformers calls it.

    Args:
        module: not used.
        query: (B, H, Q, D).
        key, value: (B, G, K, D); H / G heads share one.
        attention_mask: (B, 1, Q, K), added to the scores; its dtype is that of the products.
        scaling: of the scores.
        parts: queries one after the other, and where each of them looks; what they do not see is
            never computed.

    Returns:
        (B, Q, H, D), and no weights.
    """
    dtype, heads = attention_mask.dtype, query.shape[1]
    groups = heads // key.shape[1]
    keys, values = (x.to(dtype).repeat_interleave(groups, 1).flatten(0, 1) for x in (key, value))
    queries = (query * scaling).to(dtype).flatten(0, 1)
    found = []
    with torch.autocast(query.device.type, enabled=False):
        for rows, columns in parts:
            bias = torch.cat([attention_mask[:, :, rows, seen] for seen in columns], -1)
            near, told = (torch.cat([x[:, seen] for seen in columns], 1) for x in (keys, values))
            scores = torch.baddbmm(
                bias.expand(-1, heads, -1, -1).flatten(0, 1),
                queries[:, rows], near.transpose(-1, -2),
            )  # fmt: skip
            found.append(torch.bmm(scores.softmax(-1), told))
    return torch.cat(found, 1).unflatten(0, (-1, heads)).transpose(1, 2), None


@contextmanager
def trains_fast(
    decoder: Any, mask: torch.Tensor, parts: Parts = EVERYTHING
) -> Iterator[torch.Tensor]:
    """What to give a decoder for ``attention_mask``, for as long as the block lasts: on CPUs what
    is added to scores, elsewhere the mask itself.

    Args:
        decoder: text model of transformers.
        mask: (B, Q, K) bool, True where a query may look.
        parts: of which the mask shows nothing else, see `biased_attention`.
    """
    if mask.device.type != "cpu":
        yield mask[:, None]
        return
    functions = require("transformers", extra="vla").AttentionInterface
    functions.register(NAME, partial(biased_attention, parts=parts))
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else decoder.dtype
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, HIDDEN)[:, None]
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield bias
    finally:
        decoder.config._attn_implementation = before
