"""Attention over a shared prefix in plain torch: every branch gets a copy of the prefix."""

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
    """Attention of N branches, each to the prefix that all share and to a suffix of its own.

    Heads are grouped (GQA): query head h reads head ``h // (H / Hkv)`` of keys and values. P or S
    may be 0. Slots that are hidden must still hold finite numbers.

    Args:
        q: (N, H, Q, D).
        k_prefix, v_prefix: (1, Hkv, P, D), with Hkv a divisor of H.
        k_suffix, v_suffix: (N, Hkv, S, D).
        mask: (N or 1, Q, S) bool, True where a query may look in its suffix.
        scale: of the scores, as a rule D^-0.5.
        visible: (N or 1, P) bool, which slots of the prefix a branch sees; all where it is None.

    Returns:
        (N, H, Q, D) in the dtype of `q`; zeros for a query that sees nothing at all.
    """
    N, H, Q, _ = q.shape
    P, group = k_prefix.shape[2], H // k_prefix.shape[1]
    keys, values = (
        torch.cat([prefix.expand(N, -1, -1, -1), suffix], 2).repeat_interleave(group, 1)
        for prefix, suffix in ((k_prefix, k_suffix), (v_prefix, v_suffix))
    )
    if visible is None:
        visible = mask.new_ones(1, P)
    seen = torch.cat([visible[:, None].expand(N, Q, P), mask.expand(N, -1, -1)], 2)[:, None]
    scores = (q @ keys.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~seen, 0.0)  # softmax of nothing is NaN
    return weights @ values
