"""The two heavy computations in their plainest form."""

from __future__ import annotations

import torch

__all__ = ["log_mixture", "nearest"]


def log_mixture(features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Log-density of each agent's mixture at each cached point.

    Args:
        features: (K, 2 d + 1) of `features_of`.
        matrix: (A, 2 d + 1, M) of `Mixture.matrix`.

    Returns:
        (A, K).
    """
    return torch.stack([(features @ one).logsumexp(1) for one in matrix])


def nearest(points: torch.Tensor, z: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The cached point that is closest to each point.

    Args:
        points: (A, N, d).
        z: (K, d).
        allowed: (K,) bool, which may be chosen.

    Returns:
        (A, N) int64.
    """
    distances = (points[:, :, None] - z).square().sum(-1)
    return distances.masked_fill(~allowed, torch.inf).argmin(-1)
