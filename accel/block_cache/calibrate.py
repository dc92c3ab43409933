"""From observations to a cache plan: watch the branches of full chains, then schedule them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.block_cache.bubbling import bubbling_union, scheduled_error, volatility
from fastloop.accel.block_cache.plan import CachePlan, Provenance
from fastloop.accel.block_cache.schedule import (
    adaptive_schedules,
    delta_schedules,
    distances,
    uniform_schedule,
    zeus_schedule,
)
from fastloop.accel.block_cache.stack import Branch, ResidualStack
from fastloop.accel.config import KINDS, AccelConfig
from fastloop.accel.samplers.base import Sampler, denoise, describe

__all__ = ["Calibration", "calibrate", "make_plan", "trace"]

USED: dict[str, tuple[str, ...]] = {  # settings, apart from those of every kind
    "exact": (),
    "uniform": ("budgets",),
    "unified": ("metric", "objective"),
    "bac": ("budgets", "union", "metric", "objective", "score"),
    "delta": ("depth", "boundary"),
    "zeus": (),
}
ENOUGH = 8  # observations, below which a schedule may be chance


@dataclass(frozen=True)
class Calibration:
    """A plan and what it was decided on.

    Attributes:
        plan: the schedules.
        distance: (N, K, K) float64 mean over observations; [n, a, t] is the error of using the
            value that branch n had at step a for step t.
        l1: the same as mean absolute difference, whatever the metric.
    """

    plan: CachePlan
    distance: npt.NDArray[np.float64]
    l1: npt.NDArray[np.float64]

    @property
    def warning(self) -> str:
        """What makes the plan doubtful, in a sentence; empty when nothing does."""
        seen = self.plan.provenance.observations
        if seen >= ENOUGH:
            return ""
        return f"decided on {seen} observations, which may be chance; average {ENOUGH} or more"


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
        config: of any kind but `none`; only `unified` and `bac` need observations.
        stack, sampler: of the policy.
        observations: `noises` and `conds` as `calibrate` takes them.
        digest: of the checkpoint.

    Raises:
        ValueError: the kind makes no plan, or needs observations and has none; the budget does
            not fit, or is for a kind of branch that the stack does not have.
    """
    if config.kind == "none":
        raise ValueError(
            "accel=none makes no cache plan; choose " + ", ".join(k for k in KINDS if k != "none")
        )
    fixed = _fixed_schedules(config, stack.branches, len(sampler.timesteps))
    if fixed is not None:
        return _plan(config, stack, sampler, fixed, digest)
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
        ValueError: the kind needs no calibration, the budget does not fit or is for a kind of
            branch that the stack does not have, there is no observation or not one condition for
            each, or a branch answers something that is not finite.
    """
    if config.kind not in ("unified", "bac"):
        raise ValueError(f"accel={config.kind} needs no calibration; choose unified or bac")
    total, steps = noises.shape[1], len(sampler.timesteps)
    if total == 0:
        raise ValueError("calibration needs at least one observation, got none")
    if conds is not None and len(conds) != total:
        raise ValueError(
            f"calibration needs one condition an observation: got noise for {total} and "
            f"{len(conds)} conditions"
        )
    budgets = _budgets(config, stack.branches, steps)

    def updates(
        distance: npt.NDArray[np.float64], l1: npt.NDArray[np.float64]
    ) -> list[tuple[int, ...]]:
        return _schedules(config, stack.branches, budgets, distance, l1)

    n = len(stack.branches)
    halves = np.zeros((2, 2, n, steps, steps))  # of the observations: sums of distance and of l1
    for m in range(total):
        cond = None if conds is None else conds[m : m + 1]
        activations = trace(stack, sampler, noises[:, m : m + 1], cond)
        for i, metric in enumerate((config.metric, "l1")):
            halves[m % 2, i] += distances(activations, metric).cpu().numpy()
        if progress is not None:
            progress(m + 1, total)
    distance, l1 = halves.sum(axis=0) / total
    plan = _plan(
        config, stack, sampler, updates(distance, l1), digest,
        observations=total, seeds=tuple(seeds),
        stability=_agreement(*(updates(*half) for half in halves)) if total > 1 else None,
    )  # fmt: skip
    return Calibration(plan, distance, l1)


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
            h = stack.add(i, h, residuals[-1], k, ctx)
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


def _budgets(config: AccelConfig, branches: Sequence[Branch], steps: int) -> list[int]:
    """Updates of each branch; refuses kinds that are not there and budgets that do not fit."""
    kinds = list(dict.fromkeys(branch.kind for branch in branches))
    for kind in config.budgets:
        if kind not in kinds:
            raise ValueError(
                f"there is a budget for branches of kind {kind!r}, but this network has: "
                + ", ".join(kinds)
            )
    budgets = [config.budgets.get(branch.kind) or config.budget for branch in branches]
    for budget in budgets:
        uniform_schedule(steps, budget)
    return budgets


def _fixed_schedules(
    config: AccelConfig, branches: Sequence[Branch], steps: int
) -> list[tuple[int, ...]] | None:
    """The schedules of a kind that looks at no observation, None for the others."""
    if config.kind == "exact":
        return [tuple(range(steps))] * len(branches)
    if config.kind == "uniform":
        return [uniform_schedule(steps, s) for s in _budgets(config, branches, steps)]
    if config.kind == "delta":
        layers = [branch.layer for branch in branches]
        return delta_schedules(layers, steps, config.budget, config.depth, config.boundary)
    if config.kind == "zeus":
        return [zeus_schedule(steps, config.budget)] * len(branches)
    return None


def _schedules(
    config: AccelConfig,
    branches: Sequence[Branch],
    budgets: Sequence[int],
    distance: npt.NDArray[np.float64],
    l1: npt.NDArray[np.float64],
) -> list[tuple[int, ...]]:
    if config.kind == "unified":
        # As published: the schedule of the first branch, which is a self-attention, for all.
        first = adaptive_schedules(distance[:1], config.budget, config.objective)
        return first * len(branches)
    schedules = adaptive_schedules(distance, budgets, config.objective)
    if config.score == "scheduled":
        scores = scheduled_error(schedules, branches, l1)
    else:
        scores = volatility(l1)
    return bubbling_union(schedules, branches, scores, config.union)


def _plan(
    config: AccelConfig,
    stack: ResidualStack,
    sampler: Sampler,
    schedules: Sequence[tuple[int, ...]],
    digest: str,
    *,
    observations: int = 0,
    seeds: tuple[int, ...] = (),
    stability: float | None = None,
) -> CachePlan:
    """The schedules as a plan that says which settings they come from."""
    steps, settings = len(sampler.timesteps), asdict(config)
    if config.force_last:
        schedules = [tuple(sorted({*schedule, steps - 1})) for schedule in schedules]
    provenance = Provenance(
        algorithm=config.kind,
        budget=config.budget,
        force_last=config.force_last,
        digest=digest,
        sampler=describe(sampler),
        observations=observations,
        seeds=seeds,
        stability=stability,
        **{name: settings[name] for name in USED[config.kind]},
    )
    return CachePlan(steps, tuple(stack.branches), tuple(schedules), provenance, config.predictor)


def _agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Jaccard index of two sets of (branch, step), step 0 apart since it is in every schedule."""
    one, two = (
        {(n, k) for n, schedule in enumerate(schedules) for k in schedule if k > 0}
        for schedules in (ours, theirs)
    )
    return len(one & two) / len(one | two) if one | two else 1.0
