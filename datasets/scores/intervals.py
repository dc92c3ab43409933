"""How far a mean over recorded samples can be trusted, when the samples of one scene are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["mean_interval"]

DRAWS_AT_ONCE = 1 << 20  # 8 MB of indices


def mean_interval(
    values: ArrayLike,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
    *,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
) -> tuple[float, float, float]:
    """The mean of `values` and its interval, by a percentile bootstrap over whole groups.

    The samples of one scene overlap and share their traffic, so that 40 of them tell little more
    than one does. Hence scenes are drawn with replacement, each with all of its samples (the
    cluster bootstrap of Field and Welsh, 2007). Below some ten groups the interval is too narrow.

    Args:
        values: (N,) numbers or truth values; rows with NaN are left out.
        groups: (N,) the scene or sequence of each value; None: each value is a group of its own.
        confidence: probability of the interval.
        seed: of the draws; the same arguments give the same interval.
        resamples: draws.
        clusters: (N,) the category of each value: the figure is then the unweighted mean over the
            means of the clusters present, and groups are drawn within each cluster.

    Returns:
        (value, low, high): all nan without a value; low and high are nan where a cluster has only
        one group, which says nothing of how groups differ.

    Raises:
        ValueError: lengths differ or `confidence` is not between 0 and 1.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"values have shape {numbers.shape}, expected (N,)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    group = _labels("groups", range(len(numbers)) if groups is None else groups, len(numbers))
    cluster = _labels("clusters", clusters, len(numbers)) if clusters is not None else 0 * group

    there = ~np.isnan(numbers)
    rng = np.random.default_rng(seed)
    present = np.unique(cluster[there])
    if not len(present):
        return float("nan"), float("nan"), float("nan")

    means, drawn = [], np.zeros(resamples)
    for label in present:
        rows = there & (cluster == label)
        _, member = np.unique(group[rows], return_inverse=True)
        sums, counts = np.bincount(member, numbers[rows]), np.bincount(member)
        means.append(np.mean(numbers[rows]))
        drawn += _drawn_means(rng, sums, counts, resamples) / len(present)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(np.mean(means)), float(low), float(high)


def _labels(what: str, labels: Any, n: int) -> NDArray[np.int64]:
    """Labels of any kind as whole numbers."""
    if len(labels) != n:
        raise ValueError(f"{len(labels)} {what} for {n} values")
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _drawn_means(
    rng: np.random.Generator, sums: NDArray[np.float64], counts: NDArray[np.int64], resamples: int
) -> NDArray[np.float64]:
    """(resamples,) the mean over as many groups as there are, drawn with replacement."""
    n = len(sums)
    if n == 1:
        return np.full(resamples, np.nan)
    at_once = max(1, DRAWS_AT_ONCE // n)
    means = []
    for start in range(0, resamples, at_once):
        draws = rng.integers(n, size=(min(at_once, resamples - start), n))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1))
    return np.concatenate(means)
