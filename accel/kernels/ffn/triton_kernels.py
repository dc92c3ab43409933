"""The feed-forward branch in two launches, split over the hidden units.

A program computes some hidden units of some rows and what these give to every output; the second
launch adds these parts in a fixed order, so the result does not depend on which program is first.
"""

from __future__ import annotations

import torch

from fastloop.accel.kernels.language import (
    Pointer,
    Scalar,
    check_dtypes,
    constexpr,
    jit,
    padded,
    pieces,
    tl,
)
from fastloop.accel.kernels.parameters import LayerNorm, Linear
from fastloop.accel.kernels.rows import normalized, row_statistics

__all__ = ["feed_forward"]


@jit
def _hidden_parts(
    stream: Pointer,
    norm_weight: Pointer,
    norm_bias: Pointer,
    inner_weight: Pointer,
    inner_bias: Pointer,
    outer_weight: Pointer,
    parts: Pointer,
    rows: Scalar,
    E: Scalar,
    F: Scalar,
    eps: Scalar,
    BLOCK_M: constexpr,
    BLOCK_F: constexpr,
    BLOCK_E: constexpr,
    BLOCK_S: constexpr,
) -> None:
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mean, inverse = row_statistics(stream, m, rows, E, eps, BLOCK_M, BLOCK_S)
    hidden = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        x = normalized(stream, norm_weight, norm_bias, m, e, mean, inverse, rows, E)
        inside = (f[None, :] < F) & (e[:, None] < E)
        w = tl.load(inner_weight + f[None, :] * E + e[:, None], mask=inside, other=0.0)
        hidden += tl.dot(x, w, input_precision="ieee")
    hidden += tl.load(inner_bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
    active = hidden.to(outer_weight.dtype.element_ty)
    part = parts + tl.program_id(1).to(tl.int64) * rows * E
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        inside = (f[:, None] < F) & (e[None, :] < E)
        w = tl.load(outer_weight + e[None, :] * F + f[:, None], mask=inside, other=0.0)
        out = tl.dot(active, w, input_precision="ieee")
        inside = (m[:, None] < rows) & (e[None, :] < E)
        tl.store(part + m[:, None] * E + e[None, :], out, mask=inside)


@jit
def _sum_parts(
    parts: Pointer,
    bias: Pointer,
    out: Pointer,
    size: Scalar,
    E: Scalar,
    count: Scalar,
    BLOCK: constexpr,
) -> None:
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    total = tl.load(bias + i % E, mask=inside, other=0.0).to(tl.float32)
    here = parts + i
    for _ in range(count):
        total += tl.load(here, mask=inside, other=0.0)
        here += size
    tl.store(out + i, total, mask=inside)


def feed_forward(h: torch.Tensor, norm: LayerNorm, inner: Linear, outer: Linear) -> torch.Tensor:
    """See `reference.feed_forward`.

    Raises:
        ValueError: tensors that are not all float32 or all bfloat16.
    """
    check_dtypes(h, inner.weight, outer.weight)
    E, F = h.shape[-1], len(inner.weight)
    h = h.contiguous()
    rows = h.numel() // E
    block_m = padded(min(rows, 64), 16)
    # Few rows: many parts, to keep the device busy. Many rows: few, for they are written and read.
    block_f = 32 if rows <= 64 else 64 if rows <= 256 else 128
    count = pieces(F, block_f)
    parts = torch.empty(count, rows, E, dtype=torch.float32, device=h.device)
    out = torch.empty_like(h)
    _hidden_parts[(pieces(rows, block_m), count)](
        h,
        norm.weight,
        norm.bias,
        inner.weight.contiguous(),
        inner.bias,
        outer.weight.contiguous(),
        parts,
        rows,
        E,
        F,
        norm.eps,
        BLOCK_M=block_m,
        BLOCK_F=block_f,
        BLOCK_E=32 if h.dtype == torch.float32 else 64,
        BLOCK_S=min(padded(E), 8192 // block_m),
        num_warps=4 if block_m * block_f <= 2048 else 8,
        num_stages=2,
    )
    _sum_parts[(pieces(rows * E, 256),)](
        parts, outer.bias, out, rows * E, E, count, BLOCK=256, num_warps=4
    )
    return out
