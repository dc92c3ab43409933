"""The attention branches in two launches: a program per environment and head, then the projection.

Heads stay apart until the projection because one program that held them all would read every
weight through one multiprocessor.
"""

from __future__ import annotations

import torch

from fastloop.accel.kernels.language import (
    Block,
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

__all__ = ["MAX_HEAD_DIM", "MAX_TOKENS", "cross_attention", "self_attention"]

MAX_TOKENS = 64  # queries, keys and scores of a head stay in the registers of one program
MAX_HEAD_DIM = 128


@jit
def _product(left: Block, right: Block) -> Block:
    """left right' in float32, without the rounding of TF32."""
    return tl.dot(left, tl.trans(right), input_precision="ieee")


@jit
def _weights(weight: Pointer, n: Block, live: Block, e: Block, E: Scalar) -> Block:
    """Rows `n` and columns `e` of a (N, E) weight."""
    inside = live[:, None] & (e[None, :] < E)
    return tl.load(weight + n[:, None] * E + e[None, :], mask=inside, other=0.0)


@jit
def _bias(bias: Pointer, n: Block, live: Block) -> Block:
    return tl.load(bias + n, mask=live, other=0.0).to(tl.float32)[None, :]


@jit
def _softmax_product(
    q: Block,
    keys: Block,
    values: Block,
    mask: Pointer,
    t: Block,
    s: Block,
    T: Scalar,
    S: Scalar,
    scale: Scalar,
    HAS_MASK: constexpr,
) -> Block:
    """softmax(q keys' scale + mask) values, in float32."""
    scores = _product(q, keys) * scale
    if HAS_MASK:
        inside = (t[:, None] < T) & (s[None, :] < S)
        added = tl.load(mask + t[:, None] * S + s[None, :], mask=inside, other=0.0)
        scores += added.to(tl.float32)
    scores = tl.where(s[None, :] < S, scores, float("-inf"))
    highest = tl.max(scores, axis=1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)  # a row that sees nothing
    weights = tl.exp(scores - highest[:, None])
    total = tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return mixed / tl.where(total == 0.0, 1.0, total)[:, None]


@jit
def _self_attention(
    stream: Pointer,
    norm_weight: Pointer,
    norm_bias: Pointer,
    qkv_weight: Pointer,
    qkv_bias: Pointer,
    mask: Pointer,
    merged: Pointer,
    T: Scalar,
    E: Scalar,
    D: Scalar,
    eps: Scalar,
    scale: Scalar,
    HAS_MASK: constexpr,
    BLOCK_T: constexpr,
    BLOCK_D: constexpr,
    BLOCK_E: constexpr,
    BLOCK_S: constexpr,
) -> None:
    here = tl.program_id(0) * T * E
    t = tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    n = tl.program_id(1) * D + d
    mean, inverse = row_statistics(stream + here, t, T, E, eps, BLOCK_T, BLOCK_S)
    q = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    keys = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    values = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        x = normalized(stream + here, norm_weight, norm_bias, t, e, mean, inverse, T, E)
        q += _product(x, _weights(qkv_weight, n, live, e, E))
        keys += _product(x, _weights(qkv_weight, E + n, live, e, E))
        values += _product(x, _weights(qkv_weight, 2 * E + n, live, e, E))
    dtype = merged.dtype.element_ty
    q = (q + _bias(qkv_bias, n, live)).to(dtype)
    keys = keys.to(dtype)  # their bias adds the same to all scores of a query: softmax drops it
    values = (values + _bias(qkv_bias, 2 * E + n, live)).to(dtype)
    mixed = _softmax_product(q, keys, values, mask, t, t, T, T, scale, HAS_MASK)
    inside = (t[:, None] < T) & live[None, :]
    tl.store(merged + here + t[:, None] * E + n[None, :], mixed, mask=inside)


@jit
def _cross_attention(
    stream: Pointer,
    keys: Pointer,
    values: Pointer,
    norm_weight: Pointer,
    norm_bias: Pointer,
    query_weight: Pointer,
    query_bias: Pointer,
    mask: Pointer,
    merged: Pointer,
    T: Scalar,
    M: Scalar,
    E: Scalar,
    D: Scalar,
    key_b: Scalar,
    key_h: Scalar,
    key_m: Scalar,
    value_b: Scalar,
    value_h: Scalar,
    value_m: Scalar,
    eps: Scalar,
    scale: Scalar,
    HAS_MASK: constexpr,
    BLOCK_T: constexpr,
    BLOCK_M: constexpr,
    BLOCK_D: constexpr,
    BLOCK_E: constexpr,
    BLOCK_S: constexpr,
) -> None:
    b = tl.program_id(0)
    head = tl.program_id(1)
    here = b * T * E
    t = tl.arange(0, BLOCK_T)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    n = head * D + d
    mean, inverse = row_statistics(stream + here, t, T, E, eps, BLOCK_T, BLOCK_S)
    q = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        x = normalized(stream + here, norm_weight, norm_bias, t, e, mean, inverse, T, E)
        q += _product(x, _weights(query_weight, n, live, e, E))
    q = (q + _bias(query_bias, n, live)).to(merged.dtype.element_ty)
    inside = (m[:, None] < M) & live[None, :]
    keys += b * key_b + head * key_h
    values += b * value_b + head * value_h
    k = tl.load(keys + m[:, None] * key_m + d[None, :], mask=inside, other=0.0)
    v = tl.load(values + m[:, None] * value_m + d[None, :], mask=inside, other=0.0)
    mixed = _softmax_product(q, k, v, mask, t, m, T, M, scale, HAS_MASK)
    inside = (t[:, None] < T) & live[None, :]
    tl.store(merged + here + t[:, None] * E + n[None, :], mixed, mask=inside)


@jit
def _projection(
    merged: Pointer,
    weight: Pointer,
    bias: Pointer,
    out: Pointer,
    rows: Scalar,
    E: Scalar,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_E: constexpr,
) -> None:
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        total += _product(_weights(merged, m, m < rows, e, E), _weights(weight, n, n < E, e, E))
    total += _bias(bias, n, n < E)
    inside = (m[:, None] < rows) & (n[None, :] < E)
    tl.store(out + m[:, None] * E + n[None, :], total, mask=inside)


def self_attention(
    h: torch.Tensor,
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.self_attention`; T up to `MAX_TOKENS`, D up to `MAX_HEAD_DIM`.

    Raises:
        ValueError: a longer sequence, a wider head, or tensors that are not all float32 or all
            bfloat16.
    """
    B, T, E = h.shape
    D = E // heads
    _check(h, T, D, qkv, out)
    h = h.contiguous()
    merged = torch.empty_like(h)
    block_t, block_e, block_s = _blocks(h)
    _self_attention[(B, heads)](
        h,
        norm.weight,
        norm.bias,
        qkv.weight,
        qkv.bias,
        h if mask is None else mask.contiguous(),
        merged,
        T,
        E,
        D,
        norm.eps,
        D**-0.5,
        HAS_MASK=mask is not None,
        BLOCK_T=block_t,
        BLOCK_D=padded(D, 16),
        BLOCK_E=block_e,
        BLOCK_S=block_s,
        num_warps=4 if block_t < 64 else 8,
        num_stages=2,
    )
    return _project(merged, out)


def cross_attention(
    h: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norm: LayerNorm,
    query: Linear,
    out: Linear,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.cross_attention`; T and M up to `MAX_TOKENS`, D up to `MAX_HEAD_DIM`.

    Keys and values may be any view whose last dimension is dense.

    Raises:
        ValueError: as for `self_attention`.
    """
    B, T, E = h.shape
    heads, M, D = keys.shape[1:]
    _check(h, max(T, M), D, query, out, keys, values)
    h = h.contiguous()
    merged = torch.empty_like(h)
    block_t, block_e, block_s = _blocks(h)
    _cross_attention[(B, heads)](
        h,
        keys,
        values,
        norm.weight,
        norm.bias,
        query.weight,
        query.bias,
        h if mask is None else mask.contiguous(),
        merged,
        T,
        M,
        E,
        D,
        *keys.stride()[:3],
        *values.stride()[:3],
        norm.eps,
        D**-0.5,
        HAS_MASK=mask is not None,
        BLOCK_T=block_t,
        BLOCK_M=padded(M, 16),
        BLOCK_D=padded(D, 16),
        BLOCK_E=block_e,
        BLOCK_S=block_s,
        num_warps=4 if block_t < 64 else 8,
        num_stages=2,
    )
    return _project(merged, out)


def _project(merged: torch.Tensor, out: Linear) -> torch.Tensor:
    E = merged.shape[-1]
    rows = merged.numel() // E
    result = torch.empty_like(merged)
    block_m = padded(min(rows, 64), 16)
    block_n = 32 if rows <= 256 else 64  # narrow where rows alone give too few programs
    _projection[(pieces(rows, block_m), pieces(E, block_n))](
        merged,
        out.weight,
        out.bias,
        result,
        rows,
        E,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_E=64,
        num_warps=4,
    )
    return result


def _blocks(h: torch.Tensor) -> tuple[int, int, int]:
    """Rows, columns of a product's step, columns of the statistics' step."""
    block_t = padded(h.shape[1], 16)
    columns = 32 if h.dtype == torch.float32 else 64  # two stages fit a small shared memory
    return block_t, columns, min(padded(h.shape[2]), 8192 // block_t)


def _check(h: torch.Tensor, tokens: int, D: int, *others: Linear | torch.Tensor) -> None:
    if tokens > MAX_TOKENS or D > MAX_HEAD_DIM:
        raise ValueError(
            f"the kernel takes up to {MAX_TOKENS} tokens and heads up to {MAX_HEAD_DIM} wide, got "
            f"{tokens} tokens and {D}"
        )
    weights = [other.weight if isinstance(other, Linear) else other for other in others]
    check_dtypes(h, *weights)
    for weight in weights:
        if weight.stride(-1) != 1:
            raise ValueError("weights, keys and values must be dense in their last dimension")
