"""A better plan than a rule makes, or a cheaper one: search against the error of the action itself.

The search starts from what `sensitivity` and `allocation` find, which is right to first order, and
goes on by exchanging updates: those that seem to be worth least against those that would be worth
most, with noise. Every plan is measured, and kept when it is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.block_cache.allocation import allocate, worth
from fastloop.accel.block_cache.chains import Chains, Measured
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.schedule import adaptive_schedules
from fastloop.accel.block_cache.sensitivity import action_distances
from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.config import RefineConfig
from fastloop.accel.samplers.base import Sampler

__all__ = ["Refinement", "refine"]

POWERS = (1.0, 0.5, 0.25)  # of first-order errors: the lower, the less they are trusted
PATIENCE = 100  # proposals that were measured before, in a row, after which nothing new is left
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Refinement:
    """What a search found.

    Attributes:
        plan: the plan to use; the one given where no better one was found.
        before, after: action error on held-out observations, mean squared in the network's
            normalized units, of the plan given and of `plan`.
        evaluations: plans that were measured.
    """

    plan: CachePlan
    before: float
    after: float
    evaluations: int


def refine(
    plan: CachePlan,
    stack: ResidualStack,
    sampler: Sampler,
    noises: torch.Tensor,
    conds: torch.Tensor | None,
    config: RefineConfig,
    *,
    progress: Callable[[int, str], None] | None = None,
) -> Refinement:
    """The plan of least action error among those of a budget, or the cheapest one within an error.

    The action error is that of the last sample, from the chain that reuses nothing and has the
    same noise. Deterministic by `config.seed`. Plans are compared on the first observations; the
    last ones, held out, decide in the end.

    Args:
        plan: to start from; gives the predictor and, unless `config` has one, the budget.
        stack, sampler: of the policy; torch must be able to differentiate them.
        noises: (num_noises, M, T, A) standard normal, for `observations` + `held_out` = M.
        conds: (M, O, D) observation tokens, None for an unconditional network.
        config: when to stop.
        progress: called with the plans measured so far, and the state of the search in words.

    Returns:
        With a budget, a plan that is no worse on held-out observations than the one given, where
        that fits the budget. With an error, a plan that keeps it on both sets; its `after` may be
        larger than `before`.

    Raises:
        ValueError: the plan is for another policy, the budget does not fit, there is nothing to
            choose, or the number of observations is not as configured.
    """
    plan.check(stack.branches, sampler)
    budget = _check(plan, noises, conds, config)
    tell = progress or (lambda done, note: None)
    seen, rest = slice(0, config.observations), slice(config.observations, None)
    training, held_out = (
        Chains(plan, stack, sampler, noises[:, rows], None if conds is None else conds[rows])
        for rows in (seen, rest)
    )
    before = held_out.measure(plan.mask()).error
    distances = action_distances(
        stack, sampler, noises[:, seen], None if conds is None else conds[seen],
        seed=config.seed, progress=lambda done, total: tell(0, f"sensitivity {done}/{total}"),
    )  # fmt: skip
    search = _Search(training, *distances, config, tell)
    if config.error is None:
        found, after = _within_budget(search, held_out, plan.mask(), budget)
    else:
        found, after = _within_error(search, held_out, plan.mask())
    if (found == plan.mask()).all():
        return Refinement(plan, before, before, search.evaluations)
    provenance = replace(
        plan.provenance, refined=search.evaluations, error_before=before, error_after=after
    )
    refined = replace(training.as_plan(found), provenance=provenance)
    return Refinement(refined, before, after, search.evaluations)


def _check(
    plan: CachePlan, noises: torch.Tensor, conds: torch.Tensor | None, config: RefineConfig
) -> int:
    """The budget; refuses what cannot be searched."""
    if config.evaluations < 1:
        raise ValueError("refinement needs at least 1 evaluation; set refine.evaluations")
    if plan.provenance.algorithm == "exact":
        raise ValueError("a plan of kind exact reuses nothing; refine one of another kind, as bac")
    n, rows = len(plan.branches), config.observations + config.held_out
    given = noises.shape[1] if conds is None else min(noises.shape[1], len(conds))
    if given != rows:
        raise ValueError(
            f"refinement is configured for {config.observations} observations and "
            f"{config.held_out} held out, got {given}"
        )
    if plan.steps < 2:
        raise ValueError(
            "a chain of 1 denoise step has nothing to reuse, and no plan to refine; use accel=exact"
        )
    budget = config.budget or plan.computed
    if not n <= budget <= plan.steps * n:
        raise ValueError(
            f"a budget of {budget} branch evaluations does not fit {n} branches and {plan.steps} "
            f"denoise steps; choose {n} to {plan.steps * n}"
        )
    return budget


def _within_budget(
    search: _Search, held_out: Chains, given: Mask, budget: int
) -> tuple[Mask, float]:
    """The least error found at `budget` branch evaluations, and what it is."""
    start = search.fitted(given, budget)
    for mask in (start, *search.allocations(budget)):
        search.consider(mask)
    allocated = search.best.mask
    search.climb()
    finalists = [held_out.measure(mask) for mask in (start, allocated, search.best.mask)]
    chosen = min(finalists, key=lambda measured: measured.error)
    return chosen.mask, chosen.error


def _within_error(search: _Search, held_out: Chains, given: Mask) -> tuple[Mask, float]:
    """The fewest branch evaluations found within the error, and what it is."""
    search.consider(given)
    fewest, enough = given.shape[1], search.best.computed
    while fewest < enough:  # as if the error fell with every update
        total = (fewest + enough) // 2
        if any(search.consider(mask) for mask in search.allocations(total)):
            enough = total
        else:
            fewest = total + 1
    search.climb()
    for mask in reversed(search.kept):
        if (measured := held_out.measure(mask)).error <= search.bound:
            break
    return measured.mask, measured.error


class _Search:
    """The best plan so far on one set of chains, and how to find a better one."""

    def __init__(
        self,
        chains: Chains,
        distance: npt.NDArray[np.float64],
        whole: npt.NDArray[np.float64],
        config: RefineConfig,
        tell: Callable[[int, str], None],
    ) -> None:
        self.chains, self.distance, self.whole, self.tell = chains, distance, whole, tell
        self.bound = math.inf if config.error is None else config.error
        self.shrinks = config.error is not None
        self.limit = config.evaluations
        self.random = np.random.default_rng(config.seed)
        # What computes everything is within any error, but costs more than any other plan.
        self.best = Measured(np.ones_like(chains.plan.mask()), 0.0, [])
        self.kept = [self.best.mask]  # each better than the one before
        self.tried = {self.best.mask.tobytes()}

    @property
    def evaluations(self) -> int:
        """Plans measured so far."""
        return len(self.tried) - 1

    def consider(self, mask: Mask) -> bool:
        """Measure a plan and keep it if it is the best; whether it was kept."""
        if mask.tobytes() in self.tried or self.evaluations >= self.limit:
            return False
        self.tried.add(mask.tobytes())
        measured = self.chains.measure(mask, self.best)
        better = self._rank(measured) < self._rank(self.best)
        if better:
            self.best = measured
            self.kept.append(mask)
        self.tell(
            self.evaluations, f"error {self.best.error:.1e}, {self.best.computed} branches computed"
        )
        return better

    def climb(self) -> None:
        """Go on until the evaluations are used up, or there is nothing new."""
        stale = 0
        while self.evaluations < self.limit and stale < PATIENCE:
            before = self.evaluations
            self.consider(self._proposal())
            stale = 0 if self.evaluations > before else stale + 1

    def allocations(self, total: int) -> Iterator[Mask]:
        """Plans of `total` updates that are best to first order.

        Some move all branches at once, which counts how their errors add up; the others treat the
        errors of branches as independent. Where the actions that a chain can end in lie apart,
        first order says nothing of the early steps that choose between them. A power below 1 of
        the errors gives such steps more updates.
        """
        steps, n = len(self.whole), len(self.distance)
        for power in POWERS:
            mask = np.zeros((steps, n), dtype=bool)
            mask[list(adaptive_schedules(self.whole[None] ** power, total // n)[0])] = True
            yield self.fitted(mask, total)
            yield allocate(self.distance**power, total)

    def fitted(self, mask: Mask, total: int) -> Mask:
        """`mask` with the best updates added, or the worst removed, until there are `total`."""
        mask = mask.copy()
        while (excess := int(mask.sum()) - total) != 0:
            value = worth(self.distance, mask)
            if excess > 0:
                place = np.where(mask, value, np.inf).argmin()
            else:
                place = np.where(mask, -np.inf, value).argmax()
            mask.flat[place] = excess < 0
        return mask

    def _rank(self, measured: Measured) -> tuple[bool, int, float]:
        """The smaller the better."""
        return measured.error > self.bound, measured.computed, measured.error

    def _proposal(self) -> Mask:
        """The best plan with a few updates moved, and perhaps a few fewer."""
        mask = self.best.mask.copy()
        removed = min(2 ** int(self.random.integers(0, 3)), int(mask[1:].sum()))
        moved = min(removed, int((~mask).sum()))
        if not self.shrinks:
            removed = moved
        elif self.random.random() < 0.5:
            moved = min(moved, int(self.random.integers(0, 2)))
        value = np.log(np.maximum(worth(self.distance, mask), np.finfo(float).tiny))
        value += self._heat() * self.random.gumbel(size=mask.shape)
        value[0] = np.nan  # sorts last: step 0 is always computed
        leaving = np.where(mask, value, np.nan).ravel().argsort()[:removed]
        coming = np.where(mask, np.nan, -value).ravel().argsort()[:moved]
        mask.flat[leaving], mask.flat[coming] = False, True
        return mask

    def _heat(self) -> float:
        """How far worths, which differ by orders of magnitude, are distrusted this time."""
        return float(np.exp(self.random.uniform(0, np.log(16))))
