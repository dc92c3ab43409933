"""How far plans are from what an expert drove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.bench.decode.moments import Moment
from fastloop.datasets.scores.ade import ade
from fastloop.policies.base import Plan

__all__ = ["HORIZONS", "Errors", "measure_errors"]

HORIZONS = (3, 5)  # seconds, as WOD-E2E reports them

Errors = dict[int, NDArray[np.float64]]
"""Horizon in seconds to the average displacement (m) at each moment."""


def measure_errors(plans: Sequence[Plan], moments: Sequence[Moment]) -> Errors:
    """The errors of a plan at each of as many moments; of horizons that plan and expert reach."""
    driven = [moment.driven for moment in moments if moment.driven is not None]
    if len(driven) != len(moments):
        return {}
    found = torch.stack([plan.actions[0] for plan in plans]).double().numpy()
    hz = 1 / plans[0].dt
    references = [way.double().numpy() for way in driven]
    reach = min(found.shape[1], *(len(way) for way in references)) / hz
    return {s: ade(found, references, s, hz) for s in HORIZONS if s <= reach + 1e-9}
