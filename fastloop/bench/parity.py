"""The gate before any speed-up: a loop must answer what its obvious, slow twin answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate, stack_of
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.graph import recording
from fastloop.bench.arms import BenchArm
from fastloop.bench.chunks import Chunks

__all__ = ["TOLERANCE", "Parity", "measure_parity"]

TOLERANCE = 1e-9  # of normalized actions, in double precision
TOLERANCE_AS_TIMED = 1e-4  # in the policy's own precision, after a chain of rounding


@dataclass(frozen=True)
class Parity:
    """Largest differences from the reference, of normalized actions.

    Attributes:
        double: in float64, from `reference_loop`; with nothing reused, from the chain as published
            too.
        as_timed: of the policy as it is timed, from the reference in float64.
    """

    double: float
    as_timed: float

    @property
    def holds(self) -> bool:
        """Whether both are rounding; false for NaN."""
        return self.double <= TOLERANCE and self.as_timed <= TOLERANCE_AS_TIMED


def measure_parity(arm: BenchArm, chunks: Chunks) -> Parity:
    """Compare the arm's loop with `reference_loop` on `chunks`."""
    plain = arm.policy.to(torch.float64)
    fast = accelerate(plain, arm.accel)
    noise, cond = chunks.inputs(fast)
    with recording():
        answer, _ = fast.loop(noise, cond)
    references = []
    if isinstance(fast.loop, AcceleratedLoop):
        loop = fast.loop.fast
        stack = stack_of(plain, arm.accel)  # without kernels
        references.append(reference_loop(stack, loop.sampler, loop.plan, noise, cond))
    if arm.plan is None or not arm.plan.reused:
        references.append(plain.loop(noise, cond)[0])
    with recording():
        timed, _ = arm.policy.loop(*chunks.inputs(arm.policy))
    return Parity(
        double=float(torch.stack([answer - expected for expected in references]).abs().max()),
        as_timed=float((timed.double() - references[0]).abs().max()),
    )
