"""Whether what is said to happen with probability p happens that often, and can be told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

__all__ = ["auroc", "expected_calibration_error"]


def expected_calibration_error(
    probabilities: ArrayLike, happened: ArrayLike, bins: int = 10
) -> float:
    """The mean distance of said probabilities from observed frequencies (Naeini et al., AAAI 2015).

    Forecasts are put into `bins` of equal width; each bin counts by the forecasts in it. It is 0
    for one who always says the base rate, too: read it beside `auroc`.

    Args:
        probabilities: (n,) in [0, 1].
        happened: (n,) truth values.
        bins: how many.

    Returns:
        in [0, 1]; nan without a forecast.

    Raises:
        ValueError: shapes differ, or a probability is none.
    """
    said, came = _checked(probabilities, happened)
    if not (said >= 0).all() or not (said <= 1).all():
        raise ValueError(f"probabilities from {said.min()} to {said.max()}, expected [0, 1]")
    if not len(said):
        return float("nan")
    place = np.minimum((said * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, said - came, minlength=bins)
    return float(np.abs(gaps).sum() / len(said))


def auroc(scores: ArrayLike, happened: ArrayLike) -> float:
    """The probability that what happened was scored higher than what did not, ties by half (Mann
    and Whitney, 1947); nan where everything or nothing happened.

    Raises:
        ValueError: shapes differ, or a score is nan.
    """
    said, came = _checked(scores, happened)
    positive, negative = int(came.sum()), int((~came).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(said)[came].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def _checked(
    numbers: ArrayLike, happened: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    said = np.asarray(numbers, dtype=np.float64)
    came = np.asarray(happened, dtype=bool)
    if said.ndim != 1 or said.shape != came.shape:
        raise ValueError(
            f"{said.shape} probabilities for {came.shape} outcomes, expected (n,) of each"
        )
    if np.isnan(said).any():
        raise ValueError(f"{int(np.isnan(said).sum())} of {len(said)} probabilities are nan")
    return said, came
