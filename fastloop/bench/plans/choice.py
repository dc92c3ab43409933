"""Of plans that a planner draws, those that CacheFlow finds likeliest, held against an expert's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.bench.decode.moments import Moment
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf
from fastloop.policies.rng import Rng

__all__ = ["FIGURES", "Choices", "choose"]

FIGURES = {
    "mean": "one in the mean", "first": "the first one", "likeliest": "the likeliest",
    "nearest": "the nearest", "judge": "CacheFlow's own",
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """What became of n moments.

    Attributes:
        distances: name of one of `FIGURES` to the mean distances (n,) from the expert's
            plan, in the units in which the planner's are compared (`BestOf.comparable`).
        planner_ms, judge_ms: how long all plans of the one took, and a plan of the other.
    """

    distances: Mapping[str, NDArray[np.float64]]
    planner_ms: list[float]
    judge_ms: list[float]


def choose(
    planner: BestOf, judge: Policy, moments: list[Moment], seed: int, advance: Callable[[int], None]
) -> Choices:
    """Have plans drawn, chosen among, and made by the judge itself, at every moment.

    Args:
        planner: chooses by the density of `judge`.
        judge: a CacheFlow policy.
        moments: with the plans of an expert.
        seed: of the plans.
        advance: told how many moments are done.
    """
    distances: dict[str, list[float]] = {name: [] for name in FIGURES}
    taken: tuple[list[float], list[float]] = [], []
    for index, moment in enumerate(moments):
        assert moment.driven is not None
        rng, plans = Rng.for_envs(seed, [index], [0]), []
        for policy, times in zip((planner, judge), taken, strict=True):
            started = perf_counter()
            plans.append(policy.plan(moment.history, rng=rng))
            times.append(1e3 * (perf_counter() - started))
        drawn, own = plans
        assert drawn.candidates is not None
        assert drawn.chosen is not None
        steps = own.actions.shape[1]
        all_plans = torch.cat([drawn.candidates[:, :, :steps], own.actions[:, None]], 1)
        made, driven = (
            planner.comparable(actions, moment.history)[0]
            for actions in (all_plans, moment.driven[None, None, :steps])
        )
        apart = (made - driven).double().norm(dim=-1).mean(-1)
        away, judged = apart[:-1], apart[-1]
        found = {
            "mean": away.mean(), "first": away[0], "likeliest": away[drawn.chosen[0]],
            "nearest": away.min(), "judge": judged,
        }  # fmt: skip
        for name, value in found.items():
            distances[name].append(float(value))
        advance(index + 1)
    return Choices({name: np.array(of) for name, of in distances.items()}, *taken)
