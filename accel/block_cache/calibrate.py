"""From observations to a cache plan: watch the branches of full chains, then schedule them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.block_cache.bubbling import bubbling_union, volatility
from fastloop.accel.block_cache.plan import CachePlan, Provenance
from fastloop.accel.block_cache.schedule import adaptive_schedules, distances, uniform_schedule
from fastloop.accel.block_cache.stack import Branch, ResidualStack
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers.base import Sampler, denoise, describe

__all__ = ["Calibration", "calibrate", "make_plan", "trace"]


@dataclass(frozen=True)
class Calibration:
    """A plan and what it was decided on.

    Attributes:
        plan: the schedules.
        distance: (N, K, K) float64 mean over observations; [n, a, t] is the error of using the
            value that branch n had at step a for step t.
        volatility: (N,) float64 mean over observations.
    """

    plan: CachePlan
    distance: npt.NDArray[np.float64]
    volatility: npt.NDArray[np.float64]


def make_plan(
    config: AccelConfig,
    stack: ResidualStack,
    sampler: Sampler,
    observations: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    *,
    digest: str = "",
) -> CachePlan:
    """The plan of a preset.

    Args:
        config: of kind `uniform`, which needs no observation, `unified` or `bac`.
        stack, sampler: of the policy.
        observations: `noises` and `conds` as `calibrate` takes them.
        digest: of the checkpoint.

    Raises:
        ValueError: the kind makes no plan, or needs observations and has none.
    """
    if config.kind == "none":
        raise ValueError("accel=none makes no cache plan; choose uniform, unified or bac")
    if config.kind == "uniform":
        steps = len(sampler.timesteps)
        schedules = [uniform_schedule(steps, config.budget)] * len(stack.branches)
        provenance = Provenance(
            "uniform", config.budget, force_last=config.force_last, digest=digest,
            sampler=describe(sampler),
        )  # fmt: skip
        return _plan(config, steps, stack.branches, schedules, provenance)
    if observations is None:
        raise ValueError(
            f"accel={config.kind} is decided on observations: pass some, or write a plan with "
            "`fastloop calibrate` and give its path as accel.plan"
        )
    noises, conds = observations
    return calibrate(stack, sampler, noises, conds, config, digest=digest).plan


def calibrate(
    stack: ResidualStack,
    sampler: Sampler,
    noises: torch.Tensor,
    conds: torch.Tensor | None,
    config: AccelConfig,
    *,
    digest: str = "",
    seeds: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Schedule the branches of `stack` on M observations, averaged.

    One observation is run at a time, so memory holds the activations of one chain.

    Args:
        stack, sampler: of the policy.
        noises: (num_noises, M, T, A) standard normal.
        conds: (M, O, D) observation tokens, None for an unconditional network.
        config: of kind `unified` or `bac`.
        digest: of the checkpoint, for provenance.
        seeds: of the episodes that the observations come from, for provenance.
        progress: called with (done, M) after each observation.

    Raises:
        ValueError: the kind needs no calibration, the budget does not fit, there is no
            observation, or a branch answers something that is not finite.
    """
    if config.kind not in ("unified", "bac"):
        raise ValueError(f"accel={config.kind} needs no calibration; choose unified or bac")
    total, steps = noises.shape[1], len(sampler.timesteps)
    if total == 0:
        raise ValueError("calibration needs at least one observation, got none")
    uniform_schedule(steps, config.budget)  # refuses a budget that does not fit, before any work

    n = len(stack.branches)
    halves = np.zeros((2, n, steps, steps)), np.zeros((2, n))
    for m in range(total):
        cond = None if conds is None else conds[m : m + 1]
        activations = trace(stack, sampler, noises[:, m : m + 1], cond)
        halves[0][m % 2] += distances(activations, config.metric).cpu().numpy()
        halves[1][m % 2] += volatility(activations).cpu().numpy()
        if progress is not None:
            progress(m + 1, total)
    distance, scores = (half.sum(axis=0) / total for half in halves)

    def updates(
        distance: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
    ) -> list[tuple[int, ...]]:
        return _schedules(config, stack.branches, distance, scores)

    stability = None
    if total > 1:
        stability = _agreement(*(updates(halves[0][half], halves[1][half]) for half in (0, 1)))
    provenance = Provenance(
        algorithm=config.kind,
        budget=config.budget,
        union=config.union if config.kind == "bac" else 0,
        metric=config.metric,
        force_last=config.force_last,
        digest=digest,
        sampler=describe(sampler),
        observations=total,
        seeds=tuple(seeds),
        stability=stability,
    )
    plan = _plan(config, steps, stack.branches, updates(distance, scores), provenance)
    return Calibration(plan, distance, scores)


@torch.inference_mode()
def trace(
    stack: ResidualStack, sampler: Sampler, noise: torch.Tensor, cond: torch.Tensor | None
) -> torch.Tensor:
    """The value of every branch at every step of one chain with nothing reused.

    Returns:
        (N, K, B S E) in the order of execution.

    Raises:
        ValueError: naming the first branch and step whose value is not finite.
    """
    ctx = stack.context(cond)
    values: list[torch.Tensor] = []

    def network(k: int, sample: torch.Tensor) -> torch.Tensor:
        h = stack.begin(sample, k, ctx)
        residuals = []
        for i in range(len(stack.branches)):
            residuals.append(stack.branch(i, h, k, ctx))
            h = h + residuals[-1]
        values.append(torch.stack(residuals).flatten(1))
        return stack.finish(h, k, ctx)

    denoise(sampler, network, noise)
    activations = torch.stack(values, dim=1)
    finite = activations.isfinite().all(dim=-1)
    if not finite.all():
        k, i = (~finite).T.nonzero()[0].tolist()
        raise ValueError(
            f"branch {stack.branches[i].name} is not finite at denoise step {k}; check the weights "
            "and the observations"
        )
    return activations


def _schedules(
    config: AccelConfig,
    branches: Sequence[Branch],
    distance: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
) -> list[tuple[int, ...]]:
    if config.kind == "unified":
        # As published: the schedule of the first branch, which is a self-attention, for all.
        return adaptive_schedules(distance[:1], config.budget) * len(branches)
    schedules = adaptive_schedules(distance, config.budget)
    return bubbling_union(schedules, branches, torch.from_numpy(scores), config.union)


def _plan(
    config: AccelConfig,
    steps: int,
    branches: Sequence[Branch],
    schedules: Sequence[tuple[int, ...]],
    provenance: Provenance,
) -> CachePlan:
    if config.force_last:
        schedules = [tuple(sorted({*schedule, steps - 1})) for schedule in schedules]
    return CachePlan(steps, tuple(branches), tuple(schedules), provenance)


def _agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Jaccard index of two sets of (branch, step), step 0 apart since it is in every schedule."""
    one, two = (
        {(n, k) for n, schedule in enumerate(schedules) for k in schedule if k > 0}
        for schedules in (ours, theirs)
    )
    return len(one & two) / len(one | two) if one | two else 1.0
