"""Put an accelerator on a policy, from outside, and take it off again."""

from __future__ import annotations

import os
from typing import Protocol, Self, TypeVar

import torch

from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.calibrate import make_plan
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.block_cache.whole import WholeStack
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import DenoiseLoop
from fastloop.accel.report import AccelReport
from fastloop.accel.samplers.base import Sampler

__all__ = ["Accelerable", "AcceleratedLoop", "accelerate", "remove", "stack_of"]


class Accelerable(Protocol):
    """A policy whose denoise loop can be exchanged."""

    @property
    def loop(self) -> DenoiseLoop:
        """What runs now."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The reverse process."""
        ...

    @property
    def digest(self) -> str:
        """Of the checkpoint, empty when it has none."""
        ...

    def stack(self) -> ResidualStack:
        """The network as a list of residual branches, or ValueError when it is none."""
        ...

    def with_loop(self, loop: DenoiseLoop) -> Self:
        """The same weights run through another loop."""
        ...


P = TypeVar("P", bound=Accelerable)


class AcceleratedLoop:
    """The loop of an accelerated policy, with the one that it replaced.

    Attributes:
        fast: what runs.
        plain: what `remove` puts back.
    """

    def __init__(self, fast: CachedLoop, plain: DenoiseLoop) -> None:
        self.fast = fast
        self.plain = plain

    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        return self.fast(noise, cond)


def accelerate(
    policy: P,
    config: AccelConfig,
    *,
    observations: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> P:
    """A policy that shares `policy`'s weights and decides sooner.

    An accelerator that is already there is replaced, so applying the same one twice changes
    nothing, and `kind="none"` takes it off. The environment variable `FASTLOOP_ACCEL=off` turns
    every accelerator into that.

    Args:
        policy: plain or accelerated; not changed.
        config: which accelerator.
        observations: noises (num_noises, M, T, A) and conds (M, O, D) to calibrate on, for kinds
            that need it and have no saved plan.

    Raises:
        ValueError: the saved plan is damaged, of another kind or for another policy; observations
            are missing; or the policy's network is no stack of residual branches.
    """
    plain = remove(policy)
    if config.kind == "none" or os.environ.get("FASTLOOP_ACCEL") == "off":
        return plain
    stack = stack_of(plain, config)
    if config.plan is not None:
        plan = CachePlan.load(config.plan)
        if plan.provenance.algorithm != config.kind:
            raise ValueError(
                f"accel={config.kind} was asked for, but {config.plan} is a plan of kind "
                f"{plan.provenance.algorithm!r}; choose accel={plan.provenance.algorithm}"
            )
    else:
        plan = make_plan(config, stack, plain.sampler, observations, digest=plain.digest)
    fast = CachedLoop(stack, plain.sampler, plan, digest=plain.digest)
    return plain.with_loop(AcceleratedLoop(fast, plain.loop))


def stack_of(policy: Accelerable, config: AccelConfig) -> ResidualStack:
    """The stack that an accelerator of this kind runs.

    Raises:
        ValueError: the policy's network is no stack of residual branches.
    """
    stack = policy.stack()
    return WholeStack(stack) if config.kind == "zeus" else stack


def remove(policy: P) -> P:
    """`policy` as published; itself when nothing accelerates it."""
    loop = policy.loop
    return policy.with_loop(loop.plain) if isinstance(loop, AcceleratedLoop) else policy
