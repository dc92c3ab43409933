"""Block caching, obvious and slow: a dictionary, and a decision at every branch of every step."""

from __future__ import annotations

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.samplers.base import Sampler, denoise

__all__ = ["reference_loop"]


@torch.inference_mode()
def reference_loop(
    stack: ResidualStack,
    sampler: Sampler,
    plan: CachePlan,
    noise: torch.Tensor,
    cond: torch.Tensor | None,
) -> torch.Tensor:
    """What `CachedLoop(stack, sampler, plan)(noise, cond)` must answer, to rounding."""
    ctx = stack.context(cond)
    cache: dict[int, torch.Tensor] = {}

    def network(k: int, sample: torch.Tensor) -> torch.Tensor:
        h = stack.begin(sample, k, ctx)
        for i, updates in enumerate(plan.updates):
            if k in updates:
                cache[i] = stack.branch(i, h, k, ctx)
            h = h + cache[i]
        return stack.finish(h, k, ctx)

    return denoise(sampler, network, noise)
