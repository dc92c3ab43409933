"""Where the time of a plan goes, from plans that are watched and therefore not timed otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch

from fastloop.accel.apply import AcceleratedLoop
from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.program import Compute
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.graph import recording
from fastloop.accel.report import AccelReport
from fastloop.accel.samplers.base import Sampler, denoise
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.history import History
from fastloop.policies.prepare import arriving
from fastloop.policies.rng import Rng

__all__ = ["measure_stages"]

T = TypeVar("T")


def measure_stages(policy: DiffusionPolicy, history: History, repeats: int) -> dict[str, float]:
    """Milliseconds of each stage of a plan, the mean of `repeats` warm ones.

    Stages: `observations` (what is around the loop: condition, noise, units), `context` (once a
    chunk), `always` (begin and finish of every step), a kind of branch each, `reuse` (what stands
    in for branches), `solver`, and `rest`, which is Python. A policy as published has `network`; a
    chain that is one CUDA graph is the stage `graph`.
    """
    watch = Stopwatch(next(policy.model.model.parameters()).device)
    loop = policy.loop.fast if isinstance(policy.loop, AcceleratedLoop) else policy.loop
    timed = policy.with_loop(_watched(loop, watch))
    for turn in range(repeats + 1):
        if turn == 1:  # the first one was cold
            watch.ms.clear()
        rng = Rng.for_envs(0, [turn] * len(history), history.ticks.tolist())
        with nullcontext() if turn else recording():
            watch("plan", timed.plan, arriving(history, policy.spec), rng=rng)
    ms = {stage: total / repeats for stage, total in watch.ms.items()}
    plan, chain = ms.pop("plan"), ms.pop("chain")
    return {"observations": plan - chain, **ms, "rest": chain - sum(ms.values())}


def _watched(loop: PlainLoop | CachedLoop, watch: Stopwatch) -> Watched:
    if not isinstance(loop, CachedLoop):
        return Watched(loop, watch)
    return WatchedCache(loop, watch) if loop.graph is None else WatchedGraph(loop, watch)


class Stopwatch:
    """Adds up the time of calls by stage, in milliseconds."""

    def __init__(self, device: torch.device) -> None:
        self.ms: Counter[str] = Counter()
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __call__(self, stage: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        self.wait()
        started = perf_counter()
        answer = function(*args, **kwargs)
        self.wait()
        self.ms[stage] += 1e3 * (perf_counter() - started)
        return answer


class Watched:
    """A `PlainLoop`, call by call."""

    def __init__(self, loop: Any, watch: Stopwatch) -> None:
        self.loop = loop
        self.watch = watch

    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        return self.watch("chain", self.chain, noise, cond), AccelReport()

    @torch.inference_mode()
    def chain(self, noise: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        """The samples' way from noise to actions."""
        timesteps, network = self.loop.sampler.timesteps.unbind(), self.loop.network
        return denoise(
            WatchedSampler(self.loop.sampler, self.watch),
            lambda k, x: self.watch("network", network, x, timesteps[k], cond),
            noise,
        )


class WatchedCache(Watched):
    """A `CachedLoop`, instruction by instruction."""

    loop: CachedLoop

    @torch.inference_mode()
    def chain(self, noise: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        """The samples' way from noise to actions."""
        watch, stack, program = self.watch, self.loop.stack, self.loop.program
        ctx = watch("context", stack.context, cond)
        cache: list[Any] = [None] * program.slots
        kinds = [branch.kind for branch in stack.branches]

        def network(k: int, sample: torch.Tensor) -> torch.Tensor:
            h = watch("always", stack.begin, sample, k, ctx)
            for instruction in program.steps[k]:
                computes = isinstance(instruction, Compute)
                stage = kinds[instruction.branch] if computes else "reuse"
                h = watch(stage, instruction, h, stack, k, ctx, cache)
            return watch("always", stack.finish, h, k, ctx)

        fused = {} if self.loop.fused is None else self.loop.fused.leaps(cache)
        leaps = {first: partial(watch, "reuse", leap) for first, leap in fused.items()}
        return denoise(WatchedSampler(self.loop.sampler, watch), network, noise, leaps)


class WatchedGraph(Watched):
    """A `CachedLoop` as one piece."""

    loop: CachedLoop

    def chain(self, noise: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        """The samples' way from noise to actions."""
        return self.watch("graph", self.loop, noise, cond)[0]


class WatchedSampler:
    """A sampler whose steps are timed."""

    def __init__(self, sampler: Sampler, watch: Stopwatch) -> None:
        self.sampler = sampler
        self.watch = watch
        self.timesteps, self.num_noises = sampler.timesteps, sampler.num_noises

    def step(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Sampler.step`."""
        return self.watch("solver", self.sampler.step, *args)
