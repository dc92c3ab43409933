"""Attention over a shared prefix on a CPU: two calls of torch's flash attention, then a merge.

To the prefix all branches and all query heads of a group are rows of one matrix, so that it is
read once and its products are large. The two results are merged by their log-sum-exp (Rabe and
Staats 2021, https://arxiv.org/abs/2112.05682).
"""

from __future__ import annotations

import torch

__all__ = ["shared_prefix_attention"]

HIDDEN = -1e30  # finite, so that the mean over nothing is a number; its weight is exactly 0

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # gives the log-sum-exp


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
    """See `reference.shared_prefix_attention`; float32, float64 or bfloat16.

    Raises:
        ValueError: tensors that are not on a CPU.
    """
    if q.device.type != "cpu":
        raise ValueError(
            f"this form is for a CPU, got tensors on {q.device}; there "
            "shared_prefix.triton_kernels or shared_prefix.reference has the same function"
        )
    N, H, Q, D = q.shape
    _, heads, P, _ = k_prefix.shape
    S = k_suffix.shape[2]
    group = H // heads
    if not P + S:
        return torch.zeros_like(q)
    rows = q.reshape(N, heads, group * Q, D)
    parts = []
    if P:
        folded = rows.transpose(0, 1).reshape(1, heads, N * group * Q, D)
        bias = None
        if visible is not None:
            bias = _bias(visible, q.dtype)[:, None].expand(N, group * Q, P).reshape(1, 1, -1, P)
        out, lse = _attention(folded, k_prefix, v_prefix, attn_mask=bias, scale=scale)
        out, lse = out.view(heads, N, group * Q, D), lse.view(heads, N, group * Q)
        parts.append((out.transpose(0, 1), lse.transpose(0, 1)))
    if S:
        bias = _bias(mask, q.dtype)[:, None].expand(N, group, Q, S).reshape(N, 1, group * Q, S)
        parts.append(_attention(rows, k_suffix, v_suffix, attn_mask=bias, scale=scale))
    result = (_merged(*parts) if len(parts) == 2 else parts[0][0]).to(q.dtype).reshape(N, H, Q, D)
    if P and visible is None:
        return result
    sees = mask.any(-1)
    if visible is not None:
        sees = sees | visible.any(-1, keepdim=True)
    return result.masked_fill(~sees[:, None, :, None], 0.0)


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, HIDDEN)


def _merged(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Two results (..., D) with their log-sum-exp (...), as if all keys had been one set."""
    (left, left_lse), (right, right_lse) = one, other
    weight = (right_lse - left_lse).sigmoid()[..., None]
    return torch.lerp(left.to(weight.dtype), right.to(weight.dtype), weight)
