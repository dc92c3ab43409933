"""What stands in for a branch between its updates: its last value, or a guess from the last few.

Every predictor here is linear in the values that the branch had, with weights that depend on steps
alone. So it is worked out before the loop, and what a branch contributes until its next update is
a polynomial of the time: a handful of tensors, which sum over branches as plain values do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fastloop.accel.config import PredictorConfig
from fastloop.accel.samplers.base import Sampler

__all__ = ["fit", "memory", "step_times"]

Weights = npt.NDArray[np.float64]  # (P, n): row p weighs the n values for the power p of time


def memory(predictor: PredictorConfig) -> int:
    """How many of its values a branch keeps, the newest included."""
    return _CONTINUATIONS[predictor.kind][0]


def step_times(predictor: PredictorConfig, sampler: Sampler) -> list[float]:
    """(K,) times of a chain's steps in the predictor's variable, scaled to run from 0 to 1."""
    if predictor.variable == "log_snr":
        times = sampler.log_snr.double()
    else:
        times = torch.arange(len(sampler.timesteps), dtype=torch.float64)
    span = (times[-1] - times[0]).item() or 1.0  # of a single step
    scaled: list[float] = ((times - times[0]) / span).tolist()
    return scaled


def fit(predictor: PredictorConfig, times: Sequence[float], until: float) -> Weights:
    """The polynomial that continues a branch.

    Args:
        times: of the values that are kept, the newest first; at most `memory(predictor)`.
        until: the time of the first step that reuses.

    Returns:
        (P, n) weights: the forecast at time t is the sum over p and j of
        ``weights[p, j] * value[j] * t**p``. The row sums are 1, 0, 0: a value that did not change
        is forecast not to.
    """
    most, continuation = _CONTINUATIONS[predictor.kind]
    weights = continuation(np.asarray(times[:most], dtype=np.float64), until)
    still = np.zeros_like(weights)
    still[0, 0] = 1
    return still + predictor.damping * (weights - still)


def _reuse(times: Weights, until: float) -> Weights:
    return np.ones((1, 1))


def _taylor(times: Weights, until: float) -> Weights:
    """Newton's polynomial through the kept values, with their true, unequal gaps.

    With equal gaps its slopes are the differences of TaylorSeer (arXiv 2503.06923).
    """
    n = len(times)
    differences, basis = np.eye(n), np.ones(1)  # of the values; powers of t, the lowest first
    weights = np.zeros((n, n))
    for order in range(n):
        weights[: order + 1] += np.outer(basis, differences[0])
        gaps = times[: n - order - 1] - times[order + 1 :]
        differences = (differences[:-1] - differences[1:]) / gaps[:, None]
        basis = np.convolve(basis, [-times[order], 1])
    return weights


def _adams_bashforth(times: Weights, until: float) -> Weights:
    """HAS (github.com/ky-ji/HAS) with slopes from finite differences.

    Each kept value is continued with the Adams-Bashforth mean of the slopes from it backwards; the
    newer a value, the more its continuation counts. The oldest value takes the slope to the next
    one (HAS takes 0, and then overshoots a straight line).
    """
    n = len(times)
    if n == 1:
        return _reuse(times, until)
    slopes = np.zeros((n, n))
    for j in range(n - 1):
        slopes[j, [j, j + 1]] = np.array([1, -1]) / (times[j] - times[j + 1])
    weights = np.zeros((2, n))
    for j, share in enumerate(FUSION[n]):
        first = min(j, n - 2)
        slope = np.asarray(ADAMS_BASHFORTH[n - 1 - first]) @ slopes[first : n - 1]
        weights[0, j] += share
        weights[0] -= share * times[j] * slope
        weights[1] += share * slope
    return weights


def _zeus(times: Weights, until: float) -> Weights:
    """ZEUS: the line through the last two values, held where the first reused step meets it.

    Holding it for the whole run (ZEUS calls this interleaving) keeps a forecast from being
    extrapolated from a forecast.
    """
    line = _taylor(times, until)
    held: Weights = (until ** np.arange(len(line))) @ line
    return held[None]


# Shares of the continuations of the kept values, and of the slopes, both the newest first.
FUSION = {2: (0.7, 0.3), 3: (0.5, 0.3, 0.2)}
ADAMS_BASHFORTH = {1: (1.0,), 2: (3 / 2, -1 / 2)}

_CONTINUATIONS: dict[str, tuple[int, Callable[[Weights, float], Weights]]] = {
    "reuse": (1, _reuse),
    "taylor1": (2, _taylor),
    "taylor2": (3, _taylor),
    "adams_bashforth": (3, _adams_bashforth),
    "zeus": (2, _zeus),
}
