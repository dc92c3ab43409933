"""A cache plan lowered to straight-line work: what to do at each step, with nothing to decide.

On a step, a maximal run of consecutive reused branches is one value, their sum, and one add. The
sum is made again only when a branch in it was computed since, and then from the largest sums that
still hold. So a step that reuses everything is one add. Where reused branches are forecast, a value
is a polynomial of the time (see `predictor`), one tensor a power, and one add a power.

Branches with a gate are not summed: their gates change from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.predictor import fit, memory
from fastloop.accel.block_cache.stack import ResidualStack

__all__ = ["Compute", "Fit", "Guard", "Instruction", "Program", "Reuse", "Sum", "lower"]

Cache = list[torch.Tensor]  # filled by the program itself
Polynomial = tuple[int, ...]  # slots of the tensors that multiply 1, time, time squared


@dataclass(frozen=True)
class Compute:
    """Evaluate a branch, keep its value, and add it."""

    branch: int
    slot: int

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        value = cache[self.slot] = stack.branch(self.branch, h, k, ctx)
        return stack.add(self.branch, h, value, k, ctx)


@dataclass(frozen=True)
class Fit:
    """Make the polynomial that continues a branch from the values that it had."""

    slots: Polynomial
    values: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        for slot, row in zip(self.slots, self.weights, strict=True):
            terms = [cache[v] * w for v, w in zip(self.values, row, strict=True)]
            cache[slot] = reduce(add, terms)
        return h


@dataclass(frozen=True)
class Sum:
    """Keep the sum of values, power by power."""

    slots: Polynomial
    parts: tuple[tuple[int, ...], ...]

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        self.keep(cache)
        return h

    def keep(self, cache: Cache) -> None:
        """Make the sum."""
        for slot, parts in zip(self.slots, self.parts, strict=True):
            cache[slot] = reduce(add, [cache[part] for part in parts])


@dataclass(frozen=True)
class Reuse:
    """Add what is kept, as it stands at `time`; `gated` names the branch where it has a gate."""

    slots: Polynomial
    time: float
    gated: int | None = None

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        value = self.value(cache)
        return h + value if self.gated is None else stack.add(self.gated, h, value, k, ctx)

    def value(self, cache: Cache) -> torch.Tensor:
        """What is added, before a gate."""
        value = cache[self.slots[0]]
        for power, slot in enumerate(self.slots[1:], start=1):
            value = torch.add(value, cache[slot], alpha=self.time**power)
        return value


@dataclass(frozen=True)
class Guard:
    """Note in `slot` whether a forecast was wrong: its mean absolute error, as a share of the
    value, above `limit` in any environment (the gate of CG-Taylor, arXiv 2508.02240)."""

    slot: int
    forecast: Reuse
    value: int
    limit: float

    def __call__(
        self, h: torch.Tensor, stack: ResidualStack, k: int, ctx: Any, cache: Cache
    ) -> torch.Tensor:
        value = cache[self.value]
        error = (self.forecast.value(cache) - value).abs().mean(dim=(1, 2))
        cache[self.slot] = (error > self.limit * value.abs().mean(dim=(1, 2))).any()
        return h


Instruction = Compute | Fit | Guard | Sum | Reuse


@dataclass(frozen=True)
class Program:
    """The work of one chain.

    Attributes:
        steps: for each of the K steps its instructions.
        slots: length of the cache.
        guards: slots that say whether a guarded forecast was wrong.
    """

    steps: tuple[tuple[Instruction, ...], ...]
    slots: int
    guards: tuple[int, ...] = ()


def lower(plan: CachePlan, times: Sequence[float] = (), *, gated: bool = False) -> Program:
    """The program of `plan`.

    Args:
        plan: what to compute and what to reuse.
        times: (K,) of the steps, for predictors that look at them.
        gated: whether the stack's branches have gates.
    """
    lowering = _Lowering(plan, times, gated)
    steps = tuple(lowering.step(k) for k in range(plan.steps))
    return Program(steps, lowering.slots.count, tuple(lowering.guards))


class _Slots:
    """Numbers of cache slots; those given back are handed out again."""

    def __init__(self) -> None:
        self.count = 0
        self.free: list[int] = []

    def take(self, number: int) -> tuple[int, ...]:
        taken = [self.free.pop() for _ in range(min(number, len(self.free)))]
        fresh = range(self.count, self.count + number - len(taken))
        self.count = fresh.stop
        return (*taken, *fresh)

    def give_back(self, slots: Iterable[int]) -> None:
        self.free += slots


class _Lowering:
    """Walks the plan step by step, with in mind what every slot holds by then."""

    def __init__(self, plan: CachePlan, times: Sequence[float], gated: bool) -> None:
        self.plan = plan
        self.times = times or range(plan.steps)
        self.gated = gated
        self.mask = plan.mask()
        self.slots = _Slots()
        n, self.memory = len(plan.branches), memory(plan.predictor)
        # Written in turns; a guarded forecast must outlive the value that it is compared with.
        self.turns = max(self.memory, 2) if plan.predictor.guard else self.memory
        self.values = [self.slots.take(self.turns) for _ in range(n)]
        self.updated: list[list[int]] = [[] for _ in range(n)]  # steps so far
        self.now: list[Polynomial] = [()] * n  # what stands for each branch
        self.sums: dict[tuple[int, int], Polynomial] = {}  # (first, last) branch -> what holds
        self.guards: list[int] = []

    def step(self, k: int) -> tuple[Instruction, ...]:
        """The instructions of step k."""
        computed = self.mask[k]
        for run in [run for run in self.sums if computed[run[0] : run[1] + 1].any()]:
            self.slots.give_back(self.sums.pop(run))
        instructions: list[Instruction] = []
        first, n = 0, len(computed)
        while first < n:
            if computed[first]:
                instructions += self.compute(first, k)
                first += 1
                continue
            last = first
            while last + 1 < n and not computed[last + 1] and not self.gated:
                last += 1
            instructions += self.reuse(first, last, k)
            first = last + 1
        return tuple(instructions)

    def compute(self, branch: int, k: int) -> list[Instruction]:
        """Evaluate a branch and, where it will be reused, say how it goes on."""
        self.updated[branch].append(k)
        kept, turn = self.values[branch], len(self.updated[branch])
        value = kept[(turn - 1) % self.turns]
        instructions: list[Instruction] = [Compute(branch, value)]
        limit = self.plan.predictor.guard
        if limit and branch == 0 and k > 0 and not self.mask[k - 1, branch]:
            self.guards += self.slots.take(1)
            forecast = Reuse(self.now[branch], float(self.times[k]))
            instructions.append(Guard(self.guards[-1], forecast, value, limit))
        if self.memory > 1:
            self.slots.give_back(slot for slot in self.now[branch] if slot not in kept)
            self.now[branch] = ()
        if k + 1 == self.plan.steps or self.mask[k + 1, branch]:
            return instructions
        steps = self.updated[branch][::-1][: self.memory]
        if len(steps) == 1:
            self.now[branch] = (value,)
            return instructions
        newest_first = tuple(kept[(turn - 1 - j) % self.turns] for j in range(len(steps)))
        times = [float(self.times[step]) for step in steps]
        weights = fit(self.plan.predictor, times, float(self.times[k + 1]))
        self.now[branch] = self.slots.take(len(weights))
        rows = tuple(tuple(row) for row in weights.tolist())
        return [*instructions, Fit(self.now[branch], newest_first, rows)]

    def reuse(self, first: int, last: int, k: int) -> list[Instruction]:
        """Add a run of branches."""
        time = float(self.times[k])
        if self.gated:
            return [Reuse(self.now[first], time, gated=first)]
        tiles = self.tile(first, last)
        if len(tiles) == 1:
            return [Reuse(tiles[0], time)]
        parts = [tuple(p for p in power if p is not None) for power in zip_longest(*tiles)]
        self.sums[first, last] = self.slots.take(len(parts))
        total = self.sums[first, last]
        return [Sum(total, tuple(parts)), Reuse(total, time)]

    def tile(self, first: int, last: int) -> list[Polynomial]:
        """What covers the branches `first` to `last`, the longest that fits at each place."""
        tiles = []
        while first <= last:
            end = max((b for a, b in self.sums if a == first and b <= last), default=first)
            tiles.append(self.sums.get((first, end), self.now[first]))
            first = end + 1
        return tiles
