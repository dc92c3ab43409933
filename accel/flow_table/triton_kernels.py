"""The mixture's log-density in one launch: product and log-sum-exp without what lies between."""

from __future__ import annotations

import torch

from fastloop.accel.kernels.language import (
    Count,
    Pointer,
    Scalar,
    check_dtypes,
    constexpr,
    jit,
    padded,
    pieces,
    tl,
)

__all__ = ["log_mixture"]


@jit
def _log_mixture(
    features: Pointer, matrix: Pointer, out: Pointer, K: Count, M: Count, F: Scalar,
    feature_k: Count, feature_f: Count, matrix_a: Count, matrix_f: Count, matrix_m: Count,
    BLOCK_K: constexpr, BLOCK_M: constexpr, BLOCK_F: constexpr,
) -> None:  # fmt: skip
    agent = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    f = tl.arange(0, BLOCK_F)
    here = features + k.to(tl.int64)[:, None] * feature_k + f[None, :] * feature_f
    x = tl.load(here, mask=(k[:, None] < K) & (f[None, :] < F), other=1.0)
    highest = tl.full((BLOCK_K,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        at = matrix + agent * matrix_a + f[:, None] * matrix_f + m[None, :] * matrix_m
        w = tl.load(at, mask=(f[:, None] < F) & (m[None, :] < M), other=0.0)
        terms = tl.dot(x, w, input_precision="ieee")
        terms = tl.where(m[None, :] < M, terms, float("-inf"))
        higher = tl.maximum(highest, tl.max(terms, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # only components of weight 0 so far
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(terms - base[:, None]), axis=1)
        highest = higher
    base = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(out + agent * K + k, base + tl.log(total), mask=k < K)


def log_mixture(features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """See `reference.log_mixture`; float32, any strides.

    Raises:
        ValueError: for another dtype, or tensors that differ in dtype or device.
    """
    check_dtypes(features, matrix)
    if features.dtype != torch.float32:
        raise ValueError(f"log-densities are computed in float32, got {features.dtype}")
    K, F = features.shape
    A, _, M = matrix.shape
    out = torch.empty(A, K, dtype=torch.float32, device=features.device)
    block_k, block_m = padded(min(K, 64), 16), padded(min(M, 64), 16)
    _log_mixture[(pieces(K, block_k), A)](
        features, matrix, out, K, M, F, *features.stride(), *matrix.stride(),
        BLOCK_K=block_k, BLOCK_M=block_m, BLOCK_F=padded(F, 16), num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
