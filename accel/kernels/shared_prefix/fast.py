"""Attention over a shared prefix on a CPU: products of matrices, and one softmax in float32.

To the prefix all branches and all query heads of a group are rows of one matrix, so that it is
read once and its products are large. torch's own attention takes several times as long for so few
queries in bfloat16, and a softmax in bfloat16 longer than one in float32.
"""

from __future__ import annotations

import torch

__all__ = ["shared_prefix_attention"]


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
    """See `reference.shared_prefix_attention`.

    Scores are rounded to the dtype of `q`; in 16 bits, without what all keys add to them alike.

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
    S, group = k_suffix.shape[2], H // heads
    wide = torch.promote_types(q.dtype, torch.float32)
    if P and q.dtype != wide:
        # What all keys share moves all scores of a query alike, which softmax does not see, but
        # rounding does: keys of Qwen2.5 have biases many times as large as what tells them apart.
        common = _mean(k_prefix, visible)
        k_prefix, k_suffix = k_prefix - common, k_suffix - common
    rows = (q * scale).reshape(N, heads, group * Q, D)
    folded = rows.transpose(0, 1).reshape(heads, N * group * Q, D)
    scores = torch.empty(N, heads, group * Q, P + S, dtype=wide)
    before, own = scores[..., :P], scores[..., P:]
    before.copy_((folded @ k_prefix[0].mT).view(heads, N, group * Q, P).transpose(0, 1))
    own.copy_(rows @ k_suffix.mT)
    own.view(N, heads, group, Q, S).masked_fill_(~mask[:, None, None], -torch.inf)
    if visible is not None:
        before.masked_fill_(~visible[:, None, None], -torch.inf)
    weights = scores.softmax(-1).to(q.dtype)
    before, own = weights[..., :P], weights[..., P:]
    folded = before.transpose(0, 1).reshape(heads, N * group * Q, P)
    mixed: torch.Tensor = (folded @ v_prefix[0]).view(heads, N, group * Q, D).transpose(0, 1)
    mixed = (mixed + own @ v_suffix).reshape(N, H, Q, D)
    if P and visible is None:
        return mixed
    sees = mask.any(-1)
    if visible is not None:
        sees = sees | visible.any(-1, keepdim=True)
    return mixed.masked_fill_(~sees[:, None, :, None], 0.0)  # softmax of nothing is NaN


def _mean(keys: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Over those of (1, Hkv, P, D) that a branch sees (B or 1, P): (1, Hkv, 1, D)."""
    if visible is None:
        return keys.mean(2, keepdim=True)
    seen = visible.any(0)
    share = seen.float().mean().clamp(min=1 / len(seen)).to(keys.dtype)
    return keys.masked_fill(~seen[:, None], 0.0).mean(2, keepdim=True) / share
