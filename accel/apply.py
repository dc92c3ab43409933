"""Put an accelerator on a policy, from outside, and take it off again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch

from fastloop.accel.block_cache.cached import CachedLoop
from fastloop.accel.block_cache.calibrate import make_plan
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.block_cache.whole import WholeStack
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import DenoiseLoop
from fastloop.accel.graph import CudaRecorder
from fastloop.accel.kernels.reused_run import Ends
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

    def stack(self, kernels: Sequence[str] = ()) -> ResidualStack:
        """The network as a list of residual branches, those of the kinds named in `kernels` by
        fused kernels, which have no derivative; ValueError when it is none or has no such kernel.
        """
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
        TypeError: for a config that is none.
        ValueError: the saved plan is damaged, of another kind or for another policy; observations
            are missing; or the policy's network is no stack of residual branches, or none that has
            the kernels.
    """
    if not isinstance(config, AccelConfig):
        raise TypeError(f"expected an AccelConfig, such as AccelConfig('bac'), got {config!r}")
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
    device = plain.sampler.timesteps.device
    records = config.graph and device.type == "cuda"
    fast = CachedLoop(
        stack_of(plain, config, config.kernels) if config.kernels else stack,
        plain.sampler,
        plan,
        digest=plain.digest,
        recorder=CudaRecorder(device) if records else None,
        ends=_ends(stack, config),
    )
    return plain.with_loop(AcceleratedLoop(fast, plain.loop))


def stack_of(
    policy: Accelerable, config: AccelConfig, kernels: Sequence[str] = ()
) -> ResidualStack:
    """The stack that an accelerator of this kind runs; see `Accelerable.stack`.

    Raises:
        ValueError: the policy's network is no stack of residual branches, or has no such kernel.
    """
    stack = policy.stack(kernels)
    return WholeStack(stack) if config.kind == "zeus" else stack


def _ends(stack: ResidualStack, config: AccelConfig) -> Ends | None:
    if "reused_run" not in config.kernels:
        return None
    ends: Ends | None = getattr(stack, "ends", None)
    if ends is None:
        raise ValueError(
            f"accel.kernels has reused_run, which accel={config.kind} cannot use with this "
            "network: it needs branches without gates, and time as a token of the memory; leave it "
            "out"
        )
    return ends


def remove(policy: P) -> P:
    """`policy` as published; itself when nothing accelerates it."""
    loop = policy.loop
    return policy.with_loop(loop.plain) if isinstance(loop, AcceleratedLoop) else policy
