"""Floating-point operations of one chunk: products and convolutions, two for a multiply-add.

Every part of a stack is run once and watched, so that a stack has nothing to declare that could
go stale. Element-wise work and the solver are not counted, as in the published figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.stack import ResidualStack

__all__ = ["Flops", "count_call", "count_stack"]

T = TypeVar("T")


@dataclass(frozen=True)
class Flops:
    """What the parts of a stack cost, for the batch size that they were counted at.

    Attributes:
        context: once a chunk.
        always: begin and finish, at every step.
        branches: each branch, at the steps that compute it.
    """

    context: int
    always: int
    branches: tuple[int, ...]

    def of(self, plan: CachePlan) -> int:
        """Of one chunk that runs `plan`."""
        computed = zip(plan.updates, self.branches, strict=True)
        return (
            self.context
            + plan.steps * self.always
            + sum(len(updates) * cost for updates, cost in computed)
        )


def count_stack(stack: ResidualStack, sample: torch.Tensor, cond: torch.Tensor | None) -> Flops:
    """Count the parts of `stack` on a sample (B, T, A) and its observation tokens (B, O, D)."""
    ctx, context = count_call(stack.context, cond)
    h, begin = count_call(stack.begin, sample, 0, ctx)
    branches = []
    for i in range(len(stack.branches)):
        value, cost = count_call(stack.branch, i, h, 0, ctx)
        h = stack.add(i, h, value, 0, ctx)
        branches.append(cost)
    _, finish = count_call(stack.finish, h, 0, ctx)
    return Flops(context, begin + finish, tuple(branches))


def count_call(function: Callable[..., T], *args: Any) -> tuple[T, int]:
    """The answer of a call, and the operations that it took.

    Attention and layers are made to run as plain products meanwhile: the counter knows no kernel
    that is the CPU's alone, and on other devices the figure must be the same.
    """
    fast, one_dnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            answer = function(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = one_dnn
    return answer, int(counter.get_total_flops())
