"""The run as one launch: a program per token, which nothing but attention would join."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastloop.accel.kernels.language import (
    Block,
    Count,
    Pointer,
    Scalar,
    constexpr,
    jit,
    padded,
    tl,
)
from fastloop.accel.kernels.reused_run.ends import Ends
from fastloop.accel.kernels.reused_run.solver import Solver

__all__ = ["MAX_ACTION_DIM", "reused_run"]

MAX_ACTION_DIM = 32  # wider tokens do not fit the registers of one program


@jit
def _centered(values: Block, inside: Block, E: Scalar) -> Block:
    return tl.where(inside, values - tl.sum(values, axis=0) / E, 0.0)


@jit
def _reused_run(
    sample: Pointer,
    memory: Pointer,
    noises: Pointer,
    residual0: Pointer,
    residual1: Pointer,
    residual2: Pointer,
    tau: Pointer,
    start: Pointer,
    embedding: Pointer,
    head: Pointer,
    mix: Pointer,
    gram: Pointer,
    offset: Pointer,
    rows: Pointer,
    sample_out: Pointer,
    memory_out: Pointer,
    first: Count,
    last: Count,
    draws: Count,
    tokens: Scalar,
    T: Scalar,
    A: Scalar,
    E: Scalar,
    eps: Scalar,
    clip: Scalar,
    ORDER: constexpr,
    HAS_MEMORY: constexpr,
    HAS_CLIP: constexpr,
    BLOCK_A: constexpr,
    BLOCK_E: constexpr,
) -> None:
    token = tl.program_id(0)
    a = tl.arange(0, BLOCK_A)
    e = tl.arange(0, BLOCK_E)
    live = a < A
    inside = e < E

    # Once a run: what the constant c gives to output (v), slope (g) and variance (s), by power.
    tile = a[:, None] * E + e[None, :]
    tile_mask = live[:, None] & inside[None, :]
    to_output = tl.load(head + tile, mask=tile_mask, other=0.0)
    to_slope = tl.load(embedding + tile, mask=tile_mask, other=0.0)
    c0 = tl.load(residual0 + token * E + e, mask=inside, other=0.0).to(tl.float32)
    c0 += tl.load(start + (token % T) * E + e, mask=inside, other=0.0)
    c0 = _centered(c0, inside, E)
    v0 = tl.sum(to_output * c0[None, :], axis=1)
    g0 = tl.sum(to_slope * c0[None, :], axis=1)
    s0 = tl.sum(c0 * c0, axis=0) / E
    if ORDER >= 1:
        c1 = tl.load(residual1 + token * E + e, mask=inside, other=0.0).to(tl.float32)
        c1 = _centered(c1, inside, E)
        v1 = tl.sum(to_output * c1[None, :], axis=1)
        g1 = tl.sum(to_slope * c1[None, :], axis=1)
        s1 = 2 * tl.sum(c0 * c1, axis=0) / E
        s2 = tl.sum(c1 * c1, axis=0) / E
    if ORDER >= 2:
        c2 = tl.load(residual2 + token * E + e, mask=inside, other=0.0).to(tl.float32)
        c2 = _centered(c2, inside, E)
        v2 = tl.sum(to_output * c2[None, :], axis=1)
        g2 = tl.sum(to_slope * c2[None, :], axis=1)
        s2 += 2 * tl.sum(c0 * c2, axis=0) / E
        s3 = 2 * tl.sum(c1 * c2, axis=0) / E
        s4 = tl.sum(c2 * c2, axis=0) / E

    square = a[:, None] * A + a[None, :]
    square_mask = live[:, None] & live[None, :]
    to_mix = tl.load(mix + square, mask=square_mask, other=0.0)
    to_gram = tl.load(gram + square, mask=square_mask, other=0.0)
    constant = tl.load(offset + a, mask=live, other=0.0)

    here = token * A + a
    x = tl.load(sample + here, mask=live, other=0.0).to(tl.float32)
    x0 = tl.zeros((BLOCK_A,), tl.float32)
    if HAS_MEMORY:
        x0 += tl.load(memory + here, mask=live, other=0.0).to(tl.float32)
    stride = tokens * A
    # A step's noise is fetched one step ahead: its latency would be longer than the step.
    ahead = noises + (first + 1) * stride + here
    noise = tl.load(ahead, mask=live & (first + 1 < draws), other=0.0)
    for k in range(first, last):
        ahead += stride
        following = tl.load(ahead, mask=live & (k + 2 < draws), other=0.0)
        v = v0
        g = g0
        s = s0
        if ORDER == 1:
            at = tl.load(tau + k)
            v = v0 + at * v1
            g = g0 + at * g1
            s = s0 + at * (s1 + at * s2)
        if ORDER == 2:
            at = tl.load(tau + k)
            v = v0 + at * (v1 + at * v2)
            g = g0 + at * (g1 + at * g2)
            s = s0 + at * (s1 + at * (s2 + at * (s3 + at * s4)))
        v += tl.sum(to_mix * x[None, :], axis=1)
        g += tl.sum(to_gram * x[None, :], axis=1)
        # Rounding may leave a variance of 0 below 0; a NaN must pass.
        variance = tl.sum(x * g, axis=0) + s
        variance = tl.where(variance < 0.0, 0.0, variance)
        output = v * tl.rsqrt(variance + eps) + constant

        row = rows + 7 * k
        previous = x0
        x0 = tl.load(row) * x + tl.load(row + 1) * output
        if HAS_CLIP:
            x0 = tl.clamp(x0, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
        x = tl.load(row + 2) * x0 + tl.load(row + 3) * x + tl.load(row + 4) * output
        x += tl.load(row + 5) * noise.to(tl.float32) + tl.load(row + 6) * previous
        noise = following
    tl.store(sample_out + here, x, mask=live)
    tl.store(memory_out + here, x0, mask=live)


def reused_run(
    sample: torch.Tensor,
    memory: torch.Tensor | None,
    noises: torch.Tensor,
    residuals: Sequence[torch.Tensor],
    tau: torch.Tensor | None,
    ends: Ends,
    solver: Solver,
    first: int,
    last: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.reused_run`; sample, memory and noises of one dtype, the tables float32.

    Raises:
        ValueError: more than `MAX_ACTION_DIM` actions, more than three residuals, tables that are
            not float32, or no step.
    """
    B, T, A = sample.shape
    E = residuals[0].shape[-1]
    order = len(residuals) - 1
    if A > MAX_ACTION_DIM:
        raise ValueError(f"the kernel takes up to {MAX_ACTION_DIM} actions a token, got {A}")
    if order > 2 or (order > 0 and tau is None):
        raise ValueError(f"one to three residuals, with tau from two on; got {order + 1}")
    if first >= last:
        raise ValueError(f"a run has at least one step, got {first} to {last}")
    if solver.rows.dtype != torch.float32 or (tau is not None and tau.dtype != torch.float32):
        raise ValueError("the solver's table and tau must be float32: sampler.to(device, float32)")
    folded = ends.folded
    constants = [residual.contiguous() for residual in residuals]
    constants += constants[:1] * (3 - len(constants))
    following = torch.empty(B, T, A, dtype=sample.dtype, device=sample.device)
    x0 = torch.empty_like(following)
    block_a, block_e = padded(A), padded(E)
    _reused_run[(B * T,)](
        sample.contiguous(),
        following if memory is None else memory.contiguous(),
        noises.contiguous(),
        *constants,
        folded.start if tau is None else tau,
        *folded,
        solver.rows.contiguous(),
        following,
        x0,
        first,
        last,
        len(noises),
        B * T,
        T,
        A,
        E,
        ends.norm.eps,
        0.0 if solver.clip is None else solver.clip,
        ORDER=order,
        HAS_MEMORY=memory is not None,
        HAS_CLIP=solver.clip is not None,
        BLOCK_A=block_a,
        BLOCK_E=block_e,
        num_warps=min(16, max(1, block_a * block_e // 2048)),  # 64 registers a tile
    )
    return following, x0
