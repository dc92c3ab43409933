"""The denoise loop that reuses residual branches as a plan says."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.predictor import step_times
from fastloop.accel.block_cache.program import lower
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.report import AccelReport
from fastloop.accel.samplers.base import Sampler, denoise

__all__ = ["CachedLoop"]


class CachedLoop:
    """Runs `plan` with its reused runs collapsed; equal to `reference_loop` to rounding.

    Cached values live for one call, so nothing passes from chunk to chunk, and an exception in the
    middle of a chain leaves nothing behind.

    Args:
        stack: the network.
        sampler: the reverse process.
        plan: made for this network and this number of steps.
        digest: of the checkpoint, to compare with the plan's.

    Raises:
        ValueError: the plan is for another policy.
    """

    def __init__(
        self, stack: ResidualStack, sampler: Sampler, plan: CachePlan, *, digest: str = ""
    ) -> None:
        plan.check(stack.branches, sampler, digest)
        self.stack = stack
        self.sampler = sampler
        self.plan = plan
        times = step_times(plan.predictor, sampler)
        self.program = lower(plan, times, gated=stack.gated)

    @torch.inference_mode()
    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        stack, steps = self.stack, self.program.steps
        started = perf_counter()
        ctx = stack.context(cond)
        ready = perf_counter()
        cache: list[Any] = [None] * self.program.slots

        def network(k: int, sample: torch.Tensor) -> torch.Tensor:
            h = stack.begin(sample, k, ctx)
            for instruction in steps[k]:
                h = instruction(h, stack, k, ctx, cache)
            return stack.finish(h, k, ctx)

        sample = denoise(self.sampler, network, noise)
        stages = {"context": 1e3 * (ready - started), "loop": 1e3 * (perf_counter() - ready)}
        report = self.report(stages)
        if guards := self.program.guards:
            # Stays on the device: whoever reads the sample can read it then without a wait.
            violations = torch.stack([cache[slot] for slot in guards]).sum()
            report = replace(report, violations=violations)
        return sample, report

    def report(self, stage_ms: dict[str, float] | None = None) -> AccelReport:
        """What one call does, as far as it is known before; `stage_ms` is how long it took."""
        name = self.plan.provenance.algorithm
        return AccelReport(
            name=name,
            exact=self.plan.reused == 0,
            network_evaluations=self.plan.steps,
            computed=self.plan.computed,
            reused=self.plan.reused,
            shared=self.stack.shared if name == "exact" else 0,
            stage_ms=stage_ms or {},
        )
