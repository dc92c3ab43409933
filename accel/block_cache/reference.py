"""Block caching, obvious and slow: a dictionary, and a decision at every branch of every step."""

from __future__ import annotations

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.predictor import fit, memory, step_times
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
    times = step_times(plan.predictor, sampler)
    history: dict[int, list[tuple[int, torch.Tensor]]] = {}  # (step, value), the newest first

    def network(k: int, sample: torch.Tensor) -> torch.Tensor:
        h = stack.begin(sample, k, ctx)
        for i, updates in enumerate(plan.updates):
            if k in updates:
                value = stack.branch(i, h, k, ctx)
                history.setdefault(i, []).insert(0, (k, value))
            else:
                kept = history[i][: memory(plan.predictor)]
                seen = [times[step] for step, _ in kept]
                weights = fit(plan.predictor, seen, times[kept[0][0] + 1])
                now = [sum(w * times[k] ** p for p, w in enumerate(ws)) for ws in weights.T]
                value = sum(w * value for w, (_, value) in zip(now, kept, strict=True))
            h = stack.add(i, h, value, k, ctx)
        return stack.finish(h, k, ctx)

    return denoise(sampler, network, noise)
