"""A cache plan lowered to straight-line work: what to do at each step, with nothing to decide.

On a step, a maximal run of consecutive reused branches is one tensor, their sum, and one add. The
sum is made again only when a branch in it was computed since, and then from the largest sums that
still hold. So a step that reuses everything is one add.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.stack import ResidualStack

__all__ = ["Compute", "Instruction", "Program", "Reuse", "Sum", "lower"]

Cache = list[torch.Tensor]  # the value of each branch, then the sums; filled by the program itself


@dataclass(frozen=True)
class Compute:
    """Evaluate branch `slot` and keep its value."""

    slot: int

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        residual = cache[self.slot] = stack.branch(self.slot, h, k, ctx)
        return h + residual


@dataclass(frozen=True)
class Sum:
    """Keep the sum of `parts`, and add it."""

    slot: int
    parts: tuple[int, ...]

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        total = cache[self.slot] = reduce(add, [cache[part] for part in self.parts])
        return h + total


@dataclass(frozen=True)
class Reuse:
    """Add what is kept."""

    slot: int

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        return h + cache[self.slot]


Instruction = Compute | Sum | Reuse


@dataclass(frozen=True)
class Program:
    """The work of one chain.

    Attributes:
        steps: for each of the K steps its instructions.
        slots: length of the cache.
    """

    steps: tuple[tuple[Instruction, ...], ...]
    slots: int


def lower(plan: CachePlan) -> Program:
    """The program of `plan`; a sum's slot is free again when one of its branches is computed."""
    n = len(plan.branches)
    sums: dict[tuple[int, int], int] = {}  # (first, last) branch of the sums that hold -> slot
    slots, free = n, list[int]()
    steps = []
    for computed in plan.mask():
        for run in [run for run in sums if computed[run[0] : run[1] + 1].any()]:
            free.append(sums.pop(run))
        instructions: list[Instruction] = []
        first = 0
        while first < n:
            if computed[first]:
                instructions.append(Compute(first))
                first += 1
                continue
            last = first
            while last + 1 < n and not computed[last + 1]:
                last += 1
            parts = _tile(first, last, sums)
            if len(parts) == 1:
                instructions.append(Reuse(parts[0]))
            else:
                if not free:
                    free.append(slots)
                    slots += 1
                sums[first, last] = free.pop()
                instructions.append(Sum(sums[first, last], parts))
            first = last + 1
        steps.append(tuple(instructions))
    return Program(tuple(steps), slots)


def _tile(first: int, last: int, sums: dict[tuple[int, int], int]) -> tuple[int, ...]:
    """Slots that cover the branches `first` to `last`, the longest that fits at each place."""
    parts = []
    while first <= last:
        end = max((b for a, b in sums if a == first and b <= last), default=first)
        parts.append(sums.get((first, end), first))
        first = end + 1
    return tuple(parts)
