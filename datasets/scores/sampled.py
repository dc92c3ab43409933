"""Scores of forecasts that are given as samples, as the motion literature computes them.

The best of N samples (ADE, FDE), how far samples lie apart (APD), and both against all futures
that followed situations alike (MMADE, MMFDE): Yuan and Kitani (DLow, ECCV 2020), whose definitions
BeLFusion (Barquero et al., ICCV 2023) and CacheFlow (Maeda et al., 2025) keep. Best-of-N figures
fall with N and say nothing of the other N - 1 samples; the likelihood of the truth under all of
them, a kernel density estimate (Ivanovic and Pavone, ICCV 2019), does.

Distances are of whole states: of F = 2 numbers that of points, of a body's joints the norm over all
of them, not the mean over joints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "alike",
    "average_pairwise_distance",
    "displacements",
    "kde_log_likelihood",
    "multimodal_displacements",
]

AT_ONCE = 1 << 23  # numbers held at a time
FLOOR = -20.0  # nats; what the kernel density's authors bound a point's log-likelihood by
NARROWEST = 1e-3  # m; a kernel is no narrower, so that N equal samples have a density

Array = NDArray[np.floating]


def displacements(samples: Array, truth: Array) -> tuple[Array, Array]:
    """The distances of each sample from the truth; `.min(1)` of them is the best of N.

    Args:
        samples: (A, N, T, F) m.
        truth: (A, T, F) m.

    Returns:
        (A, N) mean over time and (A, N) at the end, m.

    Raises:
        ValueError: the shapes do not fit.
    """
    if samples.ndim != 4 or truth.shape != samples[:, 0].shape:
        raise ValueError(
            f"samples of shape {samples.shape} for futures of shape {truth.shape}, expected "
            "(A, N, T, F) and (A, T, F)"
        )
    mean, last = np.empty(samples.shape[:2]), np.empty(samples.shape[:2])
    for rows in _rows(samples):
        away = np.linalg.norm(samples[rows] - truth[rows, None], axis=-1)
        mean[rows], last[rows] = away.mean(-1), away[..., -1]
    return mean, last


def average_pairwise_distance(samples: Array) -> Array:
    """The mean distance of two of the samples (A, N, T, F), each one long vector: (A,) m, 0 for one
    sample."""
    agents, n = samples.shape[:2]
    if n == 1:
        return np.zeros(agents)
    found = np.zeros(agents)
    for rows in _rows(samples):
        flat = samples[rows].reshape(-1, n, samples[0, 0].size).astype(np.float64)
        for k in range(1, n):
            found[rows] += np.linalg.norm(flat[:, k:] - flat[:, :-k], axis=-1).sum(1)
    return found * 2 / (n * (n - 1))


def alike(situations: Array, distance: float, most: int = 50) -> list[NDArray[np.int64]]:
    """For each of the situations (A, S) the rows of those nearer than `distance`, its own first.

    Of more than `most` as many are taken, evenly over the rows: everybody who stands still is in
    the same situation, and hundreds of futures would say little more than some do.
    """
    found = []
    points = situations.astype(np.float64)
    lengths = (points**2).sum(1)
    for start in range(0, len(points), 512):
        some = slice(start, start + 512)  # squares by a matrix product, exact to some 1e-14 m^2
        square = lengths[some, None] + lengths - 2 * points[some] @ points.T
        near = square < distance**2
        near[np.arange(len(near)), start + np.arange(len(near))] = False
        for row, others in enumerate(map(np.flatnonzero, near), start):
            few = np.linspace(0, len(others) - 1, min(len(others), most - 1)).round().astype(int)
            found.append(np.concatenate([[row], others[few]]))
    return found


def multimodal_displacements(
    samples: Array, futures: Array, groups: Sequence[NDArray[np.int64]]
) -> tuple[Array, Array]:
    """The best of N for each future that could have followed, in the mean over these (MMADE,
    MMFDE).

    Args:
        samples: (A, N, T, F) m.
        futures: (B, T, F) m, of which `groups` choose.
        groups: A lists of rows of `futures`, from `alike`.

    Returns:
        (A,) mean over time and (A,) at the end, m.
    """
    mean, last = np.empty(len(samples)), np.empty(len(samples))
    for a, rows in enumerate(groups):
        found = [displacements(samples[None, a].repeat(len(chunk), 0), futures[chunk])
                 for chunk in _chunks(rows, samples[a].size)]  # fmt: skip
        mean[a] = np.concatenate([one.min(1) for one, _ in found]).mean()
        last[a] = np.concatenate([one.min(1) for _, one in found]).mean()
    return mean, last


def kde_log_likelihood(samples: Array, truth: Array) -> Array:
    """The log-likelihood of the true point under a kernel density of the sampled ones, in the mean
    over time.

    The kernel is a Gaussian with the samples' covariance, scaled by Scott's rule; a point's
    log-likelihood is at least -20 nats. It depends on N: compare equal numbers only.

    Args:
        samples: (A, N, T, F) m, N above F.
        truth: (A, T, F) m.

    Returns:
        (A,) nats, of a density per m^F.
    """
    agents, n, _, width = samples.shape
    if n <= width:
        raise ValueError(f"a density of {width} dimensions needs more than {n} samples")
    found = np.empty(agents)
    scott = n ** (-1 / (width + 4))
    for rows in _rows(samples):
        points = samples[rows].astype(np.float64).swapaxes(1, 2)  # (a, T, N, F)
        off = points - points.mean(2, keepdims=True)
        covariance = np.einsum("atni,atnj->atij", off, off) / (n - 1) * scott**2
        covariance += NARROWEST**2 * np.eye(width)
        factor = np.linalg.cholesky(covariance)
        away = (truth[rows, :, None] - points).swapaxes(2, 3)
        square = (np.linalg.solve(factor, away) ** 2).sum(2)  # (a, T, N)
        volume = np.log(np.diagonal(factor, axis1=2, axis2=3)).sum(-1)
        least = square.min(-1, keepdims=True)
        kernels = np.log(np.exp(-(square - least) / 2).mean(-1)) - least[..., 0] / 2
        density = kernels - volume - width / 2 * math.log(2 * math.pi)
        found[rows] = np.maximum(density, FLOOR).mean(-1)
    return found


def _rows(samples: Array) -> Iterator[slice]:
    """Agents of whom not too many numbers are made at a time."""
    step = max(1, AT_ONCE // max(1, samples[0].size)) if len(samples) else 1
    for start in range(0, len(samples), step):
        yield slice(start, start + step)


def _chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    step = max(1, AT_ONCE // size)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
