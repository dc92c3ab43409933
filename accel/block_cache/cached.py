"""The denoise loop that reuses residual branches as a plan says."""

from __future__ import annotations

import copy
from dataclasses import replace
from time import perf_counter
from typing import Any, Self

import torch

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.predictor import step_times
from fastloop.accel.block_cache.program import lower
from fastloop.accel.block_cache.runs import FusedRuns
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.graph import Graph, Recorder
from fastloop.accel.kernels.reused_run import Ends
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
        recorder: records the whole chain, for the shapes that are prepared for (see `Graph`); None
            runs it step by step. Another plan is another loop, and so recorded anew.
        ends: of the network, to run steps that reuse everything as one kernel; None runs them one
            by one.

    Attributes:
        graph: the chain as it is recorded, None without a recorder.
        fused: the runs of steps that are one kernel each, None without `ends`.

    Raises:
        ValueError: the plan is for another policy, or the kernel does not know the sampler.
    """

    def __init__(
        self,
        stack: ResidualStack,
        sampler: Sampler,
        plan: CachePlan,
        *,
        digest: str = "",
        recorder: Recorder | None = None,
        ends: Ends | None = None,
    ) -> None:
        plan.check(stack.branches, sampler, digest)
        self.stack = stack
        self.sampler = sampler
        self.plan = plan
        times = step_times(plan.predictor, sampler)
        self.program = lower(plan, times, gated=stack.gated)
        self.fused = None if ends is None else FusedRuns(self.program, times, ends, sampler)
        self.graph = None if recorder is None else Graph(self.chain, recorder)

    def with_sampler(self, sampler: Sampler) -> Self:
        """The same plan under another reverse process, step by step: neither a recorded chain nor a
        kernel knows of it."""
        other = copy.copy(self)
        other.sampler, other.graph, other.fused = sampler, None, None
        return other

    @torch.inference_mode()
    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        started = perf_counter()
        if self.graph is None:
            ctx = self.stack.context(cond)
            ready = perf_counter()
            sample, violations = self.steps(noise, ctx)
            loop_ms = 1e3 * (perf_counter() - ready)
            report = self.report({"context": 1e3 * (ready - started), "loop": loop_ms})
        else:
            (last, violations), why = self.graph(noise, cond)
            assert last is not None, "a chain has a last sample"
            sample, stage = last, "loop" if why else "graph"
            report = replace(
                self.report({stage: 1e3 * (perf_counter() - started)}),
                replayed=int(not why),
                not_replayed={why: 1} if why else {},
            )
        # Stays on the device: whoever reads the sample can read it then without a wait.
        return sample, report if violations is None else replace(report, violations=violations)

    def chain(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All of one call that a graph can hold: nothing in it waits for a value.

        Returns:
            (B, T, A) the last sample, and how many guarded forecasts were wrong; None where none
            is guarded.
        """
        return self.steps(noise, self.stack.context(cond))

    def steps(self, noise: torch.Tensor, ctx: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`chain` from the stack's context on."""
        stack, steps, guards = self.stack, self.program.steps, self.program.guards
        cache: list[Any] = [None] * self.program.slots

        def network(k: int, sample: torch.Tensor) -> torch.Tensor:
            h = stack.begin(sample, k, ctx)
            for instruction in steps[k]:
                h = instruction(h, stack, k, ctx, cache)
            return stack.finish(h, k, ctx)

        leaps = {} if self.fused is None else self.fused.leaps(cache)
        sample = denoise(self.sampler, network, noise, leaps)
        return sample, torch.stack([cache[slot] for slot in guards]).sum() if guards else None

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
