"""Whether an alarm tells drives that were learned from the same with left and right changed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.bench.forecast.measure import bootstrap
from fastloop.datasets.plans import Plans, mirrored
from fastloop.datasets.scores.probabilities import auroc
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.cacheflow.reading import read
from fastloop.sims.stats import Interval

__all__ = ["alarm"]

ROWS = 64


def alarm(
    policy: CacheFlowPolicy, plans: Plans, places: NDArray[np.int64], drives: NDArray[np.int64]
) -> dict[str, Interval]:
    """What is made of moments, and of the same as where traffic keeps to the other side.

    Args:
        policy: whose alarm it is.
        plans: recorded drives.
        places: (n,) the moments.
        drives: (n,) which one each is of.

    Returns:
        ``novel`` and ``novel_other_side``, the shares called so; ``auroc_novelty`` and
        ``auroc_coverage``, how well each signal tells the two apart; bootstrapped over drives.
    """
    novelty, coverage = np.zeros((2, len(places))), np.zeros((2, len(places)))
    for side, seen in enumerate((dict, mirrored)):
        for first in range(0, len(places), ROWS):
            rows = slice(first, first + ROWS)
            batch = seen(plans.gather(torch.from_numpy(places[rows])))
            known = read(batch, policy.spec.inputs, relative_to=policy.relative_to)
            flow = policy.cacheflow
            found = flow.novelty(known["history"], known.get("neighbors"))
            novelty[side, rows] = found.cpu()
            coverage[side, rows] = flow.coverage(flow.condition(**known)).cpu()
    came = np.repeat([False, True], len(places))
    both = np.tile(drives, 2)
    return {
        "novel": bootstrap(lambda said, _: float((said > 1).mean()), *_of(novelty[0], drives)),
        "novel_other_side": bootstrap(
            lambda said, _: float((said > 1).mean()), *_of(novelty[1], drives)
        ),
        "auroc_novelty": bootstrap(auroc, novelty.ravel(), came, both),
        "auroc_coverage": bootstrap(auroc, -coverage.ravel(), came, both),
    }


def _of(
    said: NDArray[np.float64], drives: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    return said, np.ones(len(said), bool), drives
