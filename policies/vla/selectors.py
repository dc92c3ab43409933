"""One plan from several: how the rollouts of a forked answer are brought together.

Candidates are (..., N, T, D) m, all finite; a plan is (..., T, D). Of candidates as good as each
other the first is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

__all__ = ["SELECTORS", "Selector", "build_selector", "feasible", "mean", "medoid", "weighted_mean"]

Selector = Callable[[torch.Tensor], torch.Tensor]
SPEED, ACCELERATION = 35.0, 6.0  # m/s and m/s^2 that a car does not exceed; as in Fast-dDrive


def mean(candidates: torch.Tensor) -> torch.Tensor:
    """Their mean, all alike (Fast-dDrive, arXiv 2605.23163)."""
    return _checked(candidates).mean(-3)


def weighted_mean(candidates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Their mean by `weights` (..., N), which need not sum to 1.

    Raises:
        ValueError: where a weight is negative or not finite, or all are 0.
    """
    weights = weights.to(candidates)
    if weights.shape[-1] != _checked(candidates).shape[-3]:
        raise ValueError(f"{weights.shape[-1]} weights for {candidates.shape[-3]} candidates")
    total = weights.sum(-1, keepdim=True)
    if not bool((weights >= 0).all() & (total > 0).all() & total.isfinite().all()):
        raise ValueError(f"weights must be at least 0 and not all 0, got {weights.tolist()}")
    return ((weights / total)[..., None, None] * candidates).sum(-3)


def medoid(candidates: torch.Tensor) -> torch.Tensor:
    """The one that is nearest to all others, by the mean distance of points at the same time.

    Unlike a mean it is a plan that was drawn: between going left and right round an obstacle, it
    goes one of these ways.
    """
    _checked(candidates)
    apart = (candidates.unsqueeze(-4) - candidates.unsqueeze(-3)).norm(dim=-1).mean(-1)
    # Summed from the smallest, so that the order of candidates does not change a sum.
    return _take(candidates, apart.sort(-1).values.sum(-1).argmin(-1))


def feasible(
    candidates: torch.Tensor,
    *,
    dt: float,
    max_speed: float = SPEED,
    max_acceleration: float = ACCELERATION,
) -> torch.Tensor:
    """The smoothest of those that a car can drive, or the one that exceeds the least.

    What exceeds is ``sum max(speed - max_speed, 0)^2 + 2 sum max(acceleration - max_acceleration,
    0)^2``, smoothness the mean squared third difference (Fast-dDrive's re-ranking), over the path
    from the origin on.

    Args:
        candidates: (..., N, T, D), T >= 3.
        dt: seconds between two points.
        max_speed: m/s.
        max_acceleration: m/s^2.
    """
    if _checked(candidates).shape[-2] < 3:
        raise ValueError(f"smoothness needs 3 points of a plan, got {candidates.shape[-2]}")
    path = torch.cat([torch.zeros_like(candidates[..., :1, :]), candidates], -2)
    velocity = path.diff(dim=-2) / dt
    acceleration = (velocity.diff(dim=-2) / dt).norm(dim=-1)
    too_fast = (velocity.norm(dim=-1) - max_speed).relu().square().sum(-1)
    exceeds = too_fast + 2 * (acceleration - max_acceleration).relu().square().sum(-1)
    roughness = path.diff(n=3, dim=-2).square().sum(-1).mean(-1)
    best = exceeds == exceeds.amin(-1, keepdim=True)
    return _take(candidates, roughness.masked_fill(~best, torch.inf).argmin(-1))


SELECTORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "mean": mean,
    "medoid": medoid,
    "feasible": feasible,
}


def build_selector(name: str, dt: float) -> Selector:
    """One of `SELECTORS`, for plans with `dt` seconds between two points."""
    return partial(feasible, dt=dt) if name == "feasible" else SELECTORS[name]


def _checked(candidates: torch.Tensor) -> torch.Tensor:
    if candidates.ndim < 3 or 0 in candidates.shape[-3:]:
        raise ValueError(f"expected (..., N, T, D) candidates, got {tuple(candidates.shape)}")
    return candidates


def _take(candidates: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return candidates.take_along_dim(index[..., None, None, None], -3).squeeze(-3)
