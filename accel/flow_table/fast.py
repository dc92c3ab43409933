"""The two heavy computations as matrix products, on numpy arrays or tensors of any device.

Futures lie along the innermost dimension, so that the maximum and the sum over components run over
whole rows of them.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Nearest", "log_mixture"]

ROOM = 1 << 20  # numbers between the product and the sum; they should stay in the cache
NEGLIGIBLE = -80.0  # its exponential is; those of less are denormal numbers, on which CPUs crawl


Array = NDArray[np.floating[Any]]


@overload
def log_mixture(features: Array, matrix: Array) -> Array: ...


@overload
def log_mixture(features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor: ...


def log_mixture(
    features: torch.Tensor | Array, matrix: torch.Tensor | Array
) -> torch.Tensor | Array:
    """See `reference.log_mixture`; arrays give an array, tensors a tensor."""
    if isinstance(features, np.ndarray) or isinstance(matrix, np.ndarray):
        return _numpy(np.asarray(features), np.asarray(matrix))
    A, F, M = matrix.shape
    K = len(features)
    result = features.new_empty(A, K)
    rows = max(1, ROOM // (M * K))
    for first in range(0, A, rows):
        some = matrix[first : first + rows].transpose(1, 2)
        terms = (some.reshape(-1, F) @ features.T).view(-1, M, K)
        highest = terms.amax(1)
        terms.sub_(highest[:, None]).clamp_(min=NEGLIGIBLE).exp_()
        torch.sum(terms, 1, out=result[first : first + rows])
        result[first : first + rows].log_().add_(highest)
    return result


def _numpy(features: Array, matrix: Array) -> Array:
    result = np.empty((len(matrix), len(features)), features.dtype)
    for row, one in zip(result, matrix, strict=True):
        terms = one.T @ features.T
        highest = terms.max(0)
        np.maximum(terms - highest, NEGLIGIBLE, out=terms)
        np.exp(terms, out=terms)
        row[:] = np.log(terms.sum(0)) + highest
    return result


class Nearest:
    """`reference.nearest` of one set of points: the largest ``points . z - |z|^2 / 2``.

    Args:
        z: (K, d).
        allowed: (K,) bool, which may be chosen.
    """

    def __init__(self, z: torch.Tensor, allowed: torch.Tensor) -> None:
        self._z = z.T.contiguous()
        self._offsets = torch.where(allowed, -0.5 * z.square().sum(-1), -torch.inf)

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Points (A, N, d) to places (A, N) int64."""
        scores = torch.addmm(self._offsets, points.flatten(0, 1), self._z)
        if scores.is_cpu:  # numpy's search is ten times as fast as torch's
            best = torch.from_numpy(scores.detach().numpy().argmax(-1))
        else:
            best = scores.argmax(-1)
        return best.view(points.shape[:2])
