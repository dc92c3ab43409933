"""Device functions on a block of stream rows: their statistics, and a normalized piece of them."""

from __future__ import annotations

from fastloop.accel.kernels.language import Block, Pointer, Scalar, constexpr, jit, tl

__all__ = ["normalized", "row_statistics"]


@jit
def row_statistics(
    stream: Pointer,
    rows: Block,
    count: Scalar,
    E: Scalar,
    eps: Scalar,
    BLOCK_M: constexpr,
    BLOCK_S: constexpr,
) -> tuple[Block, Block]:
    """Mean and inverse standard deviation (BLOCK_M,) of `rows` of a (count, E) stream.

    Two passes, because the variance as a difference of squares loses digits.
    """
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, E, BLOCK_S):
        e = start + tl.arange(0, BLOCK_S)
        inside = (rows[:, None] < count) & (e[None, :] < E)
        h = tl.load(stream + rows[:, None] * E + e[None, :], mask=inside, other=0.0)
        total += tl.sum(h.to(tl.float32), axis=1)
    mean = total / E
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, E, BLOCK_S):
        e = start + tl.arange(0, BLOCK_S)
        inside = (rows[:, None] < count) & (e[None, :] < E)
        h = tl.load(stream + rows[:, None] * E + e[None, :], mask=inside, other=0.0)
        centered = tl.where(inside, h.to(tl.float32) - mean[:, None], 0.0)
        total += tl.sum(centered * centered, axis=1)
    return mean, tl.rsqrt(total / E + eps)


@jit
def normalized(
    stream: Pointer,
    weight: Pointer,
    bias: Pointer,
    rows: Block,
    e: Block,
    mean: Block,
    scale: Block,
    count: Scalar,
    E: Scalar,
) -> Block:
    """The columns `e` of the normalized rows, in the stream's dtype; 0 outside."""
    inside = (rows[:, None] < count) & (e[None, :] < E)
    h = tl.load(stream + rows[:, None] * E + e[None, :], mask=inside, other=0.0)
    gain = tl.load(weight + e, mask=e < E, other=0.0).to(tl.float32)
    shift = tl.load(bias + e, mask=e < E, other=0.0).to(tl.float32)
    x = (h.to(tl.float32) - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
    return x.to(h.dtype)
