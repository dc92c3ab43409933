"""The Bubbling Union of Block-wise Adaptive Caching (arXiv 2506.13456).

A feed-forward branch that is refreshed on a stale stream caches a wrong value. So the branches
whose values move most are refreshed whenever a feed-forward branch downstream of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastloop.accel.block_cache.stack import Branch

__all__ = ["bubbling_union", "volatility"]


def volatility(activations: torch.Tensor) -> torch.Tensor:
    """How much each branch's value moves over the chain.

    Args:
        activations: (N, K, F) of N branches.

    Returns:
        (N,) float64, the mean absolute difference over all pairs of steps; 0 for K = 1.
    """
    steps, features = activations.shape[1:]
    pairs = steps * (steps - 1) // 2
    sums = [torch.nn.functional.pdist(branch, p=1).double().sum() for branch in activations]
    return torch.stack(sums) / max(pairs * features, 1)


def bubbling_union(
    schedules: Sequence[Sequence[int]],
    branches: Sequence[Branch],
    scores: torch.Tensor,
    top: int,
) -> list[tuple[int, ...]]:
    """Add to the `top` most volatile branches the updates of the feed-forward branches downstream.

    Downstream is the same layer or a later one. The result does not depend on the order in which
    branches are taken, because every union is over the schedules as given.

    Args:
        schedules: one per branch.
        branches: in the order of execution.
        scores: (N,) volatility.
        top: n, how many branches; 0 changes nothing.

    Returns:
        N schedules, each a superset of the one given.
    """
    united = [tuple(schedule) for schedule in schedules]
    for u in torch.argsort(scores, descending=True, stable=True)[:top].tolist():
        downstream = [
            schedule
            for branch, schedule in zip(branches, schedules, strict=True)
            if branch.kind == "ffn" and branch.layer >= branches[u].layer
        ]
        united[u] = tuple(sorted(set(schedules[u]).union(*downstream)))
    return united
