"""Steps in a row that compute no branch, each such run as one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastloop.accel.block_cache.program import Cache, Instruction, Program, Reuse, Sum
from fastloop.accel.kernels.choose import form_of
from fastloop.accel.kernels.reused_run import Ends, Solver
from fastloop.accel.samplers.base import Leap, Sampler

__all__ = ["FusedRuns", "Run", "find_runs"]


@dataclass(frozen=True)
class Run:
    """The steps `first` to `last - 1`, which all add the same values.

    Attributes:
        sums: made before the first step.
        slots: of what is added, one tensor a power of time.
    """

    first: int
    last: int
    sums: tuple[Sum, ...]
    slots: tuple[int, ...]


def find_runs(program: Program) -> Iterator[Run]:
    """The longest runs of a program whose branches have no gates."""
    k = 0
    while k < len(program.steps):
        *before, reuse = program.steps[k]
        sums = tuple(one for one in before if isinstance(one, Sum))
        first, k = k, k + 1
        if not isinstance(reuse, Reuse) or len(sums) < len(before):
            continue
        while k < len(program.steps) and _adds(program.steps[k], reuse.slots):
            k += 1
        yield Run(first, k, sums, reuse.slots)


def _adds(step: Sequence[Instruction], slots: tuple[int, ...]) -> bool:
    (*before, last) = step
    return not before and isinstance(last, Reuse) and last.slots == slots


class FusedRuns:
    """The runs of one program by the kernel `reused_run`, or its reference where that does not run.

    Args:
        program: its branches have no gates.
        times: (K,) as it was lowered with.
        ends: what the network does at every step.
        sampler: the reverse process.

    Raises:
        ValueError: the sampler is no table of coefficients.
    """

    def __init__(
        self, program: Program, times: Sequence[float], ends: Ends, sampler: Sampler
    ) -> None:
        weight = ends.head.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        solver = Solver.of(sampler)
        self.runs = list(find_runs(program))
        self.ends = ends
        self.solver = Solver(solver.rows.to(dtype), solver.clip)
        self.tau = torch.tensor(times, dtype=dtype, device=weight.device)
        self.kernel = form_of("reused_run", weight).reused_run
        _ = ends.folded  # now, and not in a chain that is being recorded

    def leaps(self, cache: Cache) -> dict[int, Leap]:
        """What replaces the steps of each run, by its first one, in a chain that fills `cache`."""
        return {run.first: self._leap(run, cache) for run in self.runs}

    def _leap(self, run: Run, cache: Cache) -> Callable[..., Any]:
        def leap(
            sample: torch.Tensor, memory: torch.Tensor | None, noises: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, int]:
            for one in run.sums:
                one.keep(cache)
            residuals = [cache[slot] for slot in run.slots]
            tau = self.tau if len(residuals) > 1 else None
            following, memory = self.kernel(
                sample, memory, noises, residuals, tau, self.ends, self.solver, run.first, run.last
            )
            return following, memory, run.last

        return leap
