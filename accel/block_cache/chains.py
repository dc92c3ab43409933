"""What a plan does to the action, measured: its chain against the one that reuses nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.predictor import step_times
from fastloop.accel.block_cache.program import lower
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.samplers.base import Sampler

__all__ = ["Chains", "Measured"]

Mask = npt.NDArray[np.bool_]
State = tuple[torch.Tensor, torch.Tensor | None, list[Any]]  # sample, sampler's memory, cache


@dataclass(frozen=True)
class Measured:
    """A plan that was run.

    Attributes:
        mask: (K, N) bool, true where branch n is computed at step k.
        error: mean squared difference of the last sample from the dense chain's, in the network's
            normalized units; infinite where the chain is not finite.
        states: before each step; empty where it was not run.
    """

    mask: Mask
    error: float
    states: list[State]

    @property
    def computed(self) -> int:
        """Branches computed in one chunk."""
        return int(self.mask.sum())


class Chains:
    """M chains on which plans of one shape are compared, always with the same noise.

    Memory holds what all M chains compute.

    Args:
        plan: gives the shape and the predictor.
        stack, sampler: of the policy.
        noises: (num_noises, M, T, A) standard normal.
        conds: (M, O, D) observation tokens, None for an unconditional network.

    Raises:
        ValueError: the chain that reuses nothing is not finite.
    """

    @torch.inference_mode()
    def __init__(
        self,
        plan: CachePlan,
        stack: ResidualStack,
        sampler: Sampler,
        noises: torch.Tensor,
        conds: torch.Tensor | None,
    ) -> None:
        self.plan, self.stack, self.sampler, self.noises = plan, stack, sampler, noises
        self.times = step_times(plan.predictor, sampler)
        self.ctx = stack.context(conds)
        for state in self._run(np.ones_like(plan.mask()), (noises[0], None, [])):
            self.dense = state[0].double()
        if not self.dense.isfinite().all():
            raise ValueError(
                "the policy's own chain is not finite; check the weights and the observations"
            )

    @torch.inference_mode()
    def measure(self, mask: Mask, near: Measured | None = None) -> Measured:
        """Run a plan, from where it parts from `near` if that is given."""
        states: list[State] = [(self.noises[0], None, [])]
        if near is not None and near.states:
            # One step earlier, because what a branch keeps depends on whether it is needed next.
            start = max(int((mask != near.mask).any(axis=1).argmax()) - 1, 0)
            states = near.states[: start + 1]
        states += self._run(mask, states[-1], len(states) - 1)
        error = (states.pop()[0] - self.dense).square().mean().item()
        return Measured(mask, error if math.isfinite(error) else math.inf, states)

    def as_plan(self, mask: Mask) -> CachePlan:
        """The plan that computes what `mask` says."""
        updates = tuple(tuple(column.nonzero()[0].tolist()) for column in mask.T)
        return replace(self.plan, updates=updates)

    def _run(self, mask: Mask, state: State, start: int = 0) -> Iterator[State]:
        """The states after the steps from `start` on."""
        stack, ctx = self.stack, self.ctx
        program = lower(self.as_plan(mask), self.times, gated=stack.gated)
        for k in range(start, self.plan.steps):
            sample, memory, cache = state
            cache = cache + [None] * (program.slots - len(cache))
            h = stack.begin(sample, k, ctx)
            for instruction in program.steps[k]:
                h = instruction(h, stack, k, ctx, cache)
            fresh = self.noises[k + 1] if k + 1 < self.sampler.num_noises else None
            output = stack.finish(h, k, ctx)
            state = (*self.sampler.step(k, sample, output, fresh, memory), cache)
            yield state
