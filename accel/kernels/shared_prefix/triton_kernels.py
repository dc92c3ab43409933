"""Attention over a shared prefix in two launches: the prefix in pieces, then suffix and merge.

To the prefix all branches and all query heads of a group are rows of one matrix. A program of the
first launch takes some of these rows and a piece of the prefix (flash decoding); one of the second
takes the rows of one branch through its suffix and adds the pieces by their log-sum-exp, in order,
so equal arguments give equal bits.
"""

from __future__ import annotations

import torch

from fastloop.accel.kernels.language import (
    Block,
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

__all__ = ["MAX_HEAD_DIM", "shared_prefix_attention"]

MAX_HEAD_DIM = 128  # queries and what they gather stay in the registers of one program
PIECE = 128  # fewest keys that are worth a program
PROGRAMS = 256  # about two for each multiprocessor of a large device


@jit
def _rows(at: Pointer, inside: Block, d: Block, D: Scalar, stride: Scalar, index: Block) -> Block:
    """Rows `index` of a (..., D) tensor whose rows are `stride` apart; 0 outside."""
    here = at + index.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(here, mask=inside[:, None] & (d[None, :] < D), other=0.0)


@jit
def _gather(
    q: Block, keys: Block, values: Block, seen: Block, scale: Scalar,
    highest: Block, total: Block, mixed: Block,
) -> tuple[Block, Block, Block]:  # fmt: skip
    """One step of the running softmax: what was gathered, with these keys added."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
    kept = tl.exp(highest - base)
    weights = tl.exp(scores - base[:, None])
    total = total * kept + tl.sum(weights, axis=1)
    mixed = mixed * kept[:, None]
    mixed += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return higher, total, mixed


@jit
def _prefix(
    q: Pointer, keys: Pointer, values: Pointer, visible: Pointer, parts: Pointer, sums: Pointer,
    count: Count, GQ: Count, P: Count, D: Scalar, piece: Count,
    q_n: Count, key_h: Scalar, key_p: Scalar, value_h: Scalar, value_p: Scalar,
    visible_n: Count, visible_p: Count, scale: Scalar,
    HAS_VISIBLE: constexpr, BLOCK_M: constexpr, BLOCK_P: constexpr, BLOCK_D: constexpr,
) -> None:  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # row: branch, head in group, query
    d = tl.arange(0, BLOCK_D)
    live = m < count
    branch = m // GQ
    at = q + head * GQ * D + branch.to(tl.int64)[:, None] * q_n + (m % GQ)[:, None] * D
    x = tl.load(at + d[None, :], mask=live[:, None] & (d[None, :] < D), other=0.0)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = tl.minimum(P, (split + 1) * piece)
    for start in range(split * piece, end, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        k = _rows(keys + head * key_h, p < end, d, D, key_p, p)
        v = _rows(values + head * value_h, p < end, d, D, value_p, p)
        seen = live[:, None] & (p[None, :] < end)
        if HAS_VISIBLE:
            here = visible + branch[:, None] * visible_n + p[None, :] * visible_p
            seen = seen & (tl.load(here, mask=seen, other=0) != 0)
        highest, total, mixed = _gather(x, k, v, seen, scale, highest, total, mixed)
    here = (split * tl.num_programs(1) + head) * count + m
    tl.store(sums + 2 * here, highest, mask=live)
    tl.store(sums + 2 * here + 1, total, mask=live)
    inside = live[:, None] & (d[None, :] < D)
    tl.store(parts + here[:, None] * D + d[None, :], mixed, mask=inside)


@jit
def _suffix(
    q: Pointer, keys: Pointer, values: Pointer, mask: Pointer, parts: Pointer, sums: Pointer,
    out: Pointer, count: Count, GQ: Count, Q: Count, S: Count, D: Scalar, splits: Count,
    q_n: Count, key_n: Count, key_h: Count, key_s: Scalar, value_n: Count, value_h: Count,
    value_s: Scalar, mask_n: Count, mask_q: Count, mask_s: Count, scale: Scalar,
    BLOCK_M: constexpr, BLOCK_S: constexpr, BLOCK_D: constexpr,
) -> None:  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    branch = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # row: head in group, query
    d = tl.arange(0, BLOCK_D)
    live = m < GQ
    own = branch * q_n + head * GQ * D
    x = _rows(q + own, live, d, D, D, m)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        k = _rows(keys + branch * key_n + head * key_h, s < S, d, D, key_s, s)
        v = _rows(values + branch * value_n + head * value_h, s < S, d, D, value_s, s)
        inside = live[:, None] & (s[None, :] < S)
        here = mask + branch * mask_n + (m % Q)[:, None] * mask_q + s[None, :] * mask_s
        seen = inside & (tl.load(here, mask=inside, other=0) != 0)
        highest, total, mixed = _gather(x, k, v, seen, scale, highest, total, mixed)
    inside = live[:, None] & (d[None, :] < D)
    for split in range(splits):
        here = (split * tl.num_programs(1) + head) * count + branch * GQ + m
        its_highest = tl.load(sums + 2 * here, mask=live, other=float("-inf"))
        its_total = tl.load(sums + 2 * here + 1, mask=live, other=0.0)
        part = tl.load(parts + here[:, None] * D + d[None, :], mask=inside, other=0.0)
        higher = tl.maximum(highest, its_highest)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        kept, added = tl.exp(highest - base), tl.exp(its_highest - base)
        total = total * kept + its_total * added
        mixed = mixed * kept[:, None] + part * added[:, None]
        highest = higher
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]  # zeros where nothing is seen
    tl.store(out + own + m[:, None] * D + d[None, :], mixed, mask=inside)


def shared_prefix_attention(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    k_suffix: torch.Tensor,
    v_suffix: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.shared_prefix_attention`; D up to `MAX_HEAD_DIM`.

    Keys and values may be any view whose last dimension is dense, masks any view.

    Raises:
        ValueError: a wider head, or tensors that are not all float32 or all bfloat16.
    """
    _check(q, k_prefix, v_prefix, k_suffix, v_suffix)
    N, H, Q, D = q.shape
    _, heads, P, _ = k_prefix.shape
    S = k_suffix.shape[2]
    q = q.contiguous()
    out = torch.empty_like(q)
    GQ = H // heads * Q
    count = N * GQ
    seen = mask.expand(N, Q, S).view(torch.uint8)
    shown = seen if visible is None else visible.expand(N, P).view(torch.uint8)
    block_m = padded(min(count, 64), 16)
    block_keys = 32 if q.dtype == torch.float32 else 64
    blocks = pieces(count, block_m) * heads
    splits = max(1, min(pieces(P, PIECE), PROGRAMS // blocks))
    piece = pieces(pieces(P, splits), block_keys) * block_keys
    splits = pieces(P, piece) if P else 0
    parts = torch.empty(splits, heads, count, D, dtype=torch.float32, device=q.device)
    sums = torch.empty(splits, heads, count, 2, dtype=torch.float32, device=q.device)
    shared = {"BLOCK_D": padded(D, 16), "num_warps": 4 if D <= 64 else 8, "num_stages": 2}
    if splits:
        _prefix[(pieces(count, block_m), heads, splits)](
            q, k_prefix, v_prefix, shown, parts, sums,
            count, GQ, P, D, piece, q.stride(0),
            *k_prefix.stride()[1:3], *v_prefix.stride()[1:3], *shown.stride()[:2], scale,
            HAS_VISIBLE=visible is not None, BLOCK_M=block_m, BLOCK_P=block_keys, **shared,
        )  # fmt: skip
    block_m = padded(min(GQ, 64), 16)
    _suffix[(pieces(GQ, block_m), heads, N)](
        q, k_suffix, v_suffix, seen, parts, sums, out,
        count, GQ, Q, S, D, splits, q.stride(0),
        *k_suffix.stride()[:3], *v_suffix.stride()[:3], *seen.stride(), scale,
        BLOCK_M=block_m, BLOCK_S=block_keys, **shared,
    )  # fmt: skip
    return out


def _check(q: torch.Tensor, *others: torch.Tensor) -> None:
    if q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(
            f"the kernel takes heads up to {MAX_HEAD_DIM} wide, got {q.shape[-1]}; "
            "shared_prefix.reference takes any"
        )
    check_dtypes(q, *others)
    for other in others:
        if other.stride(-1) != 1:
            raise ValueError("keys and values must be dense in their last dimension")
