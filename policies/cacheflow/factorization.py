"""Futures as few numbers: principal components, and how much of a future they leave out."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["Factorization"]

REST = 64  # components beyond the coordinates whose noise has a variance of its own
LEAST_SCALE = 1e-3  # of the units, for coordinates that never change


class Factorization(nn.Module):
    """Futures (T, F) as d whitened coordinates, a linear map with an exact density.

    A density of the coordinates becomes one of whole futures much as in probabilistic PCA (Tipping
    and Bishop 1999): what d components leave out is taken for Gaussian noise, along each of the
    next `REST` components of the variance that was left out there in training, and beyond them of
    one variance. So densities are comparable between different d, and a future that no combination
    of components gives is improbable.

    Attributes:
        unit: (F,) by which futures are divided first.
        mean: (T, F), in these units.
        components: (R, T F) orthonormal, R = min(d + `REST`, T F); the first d give coordinates.
        scale: (d,) standard deviations along these.
        rest: (R - d,) standard deviations along the others.
        residual: scalar standard deviation in each of the T F - R dimensions that are left.
        error: scalar, the mean distance of a time's point to what the coordinates give for it, in
            the units of the future.
        explained: scalar, share of the variance along the components.
    """

    unit: torch.Tensor
    mean: torch.Tensor
    components: torch.Tensor
    scale: torch.Tensor
    rest: torch.Tensor
    residual: torch.Tensor
    error: torch.Tensor
    explained: torch.Tensor

    def __init__(self, steps: int, width: int, dims: int) -> None:
        if not 1 <= dims <= steps * width:
            raise ValueError(
                f"futures of {steps} x {width} numbers have 1 to {steps * width} components, got "
                f"dims={dims}"
            )
        super().__init__()
        self.register_buffer("unit", torch.ones(width))
        self.register_buffer("mean", torch.zeros(steps, width))
        kept = min(dims + REST, steps * width)
        self.register_buffer("components", torch.eye(kept, steps * width))
        self.register_buffer("scale", torch.ones(dims))
        self.register_buffer("rest", torch.ones(kept - dims))
        for name in ("residual", "error", "explained"):
            self.register_buffer(name, torch.ones(()))

    @property
    def dims(self) -> int:
        """d."""
        return len(self.scale)

    @torch.no_grad()
    def fit(self, futures: torch.Tensor, *, standardize: bool = False) -> None:
        """Fit to futures (n, T, F).

        Args:
            futures: training ones.
            standardize: give each of the F elements its own unit, its standard deviation; for
                elements of different kinds, such as turns and grips.
        """
        values = futures.double()
        if standardize:
            self.unit.copy_(values.std((0, 1), correction=0).clamp(min=LEAST_SCALE))
        values = values / self.unit
        self.mean.copy_(values.mean(0))
        flat = (values - self.mean).flatten(1)
        variances, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        variances = variances.flip(0).clamp(min=0)
        kept = len(self.components)
        self.components.copy_(vectors.flip(1).T[:kept])
        scales = variances.sqrt().clamp(min=LEAST_SCALE)
        self.scale.copy_(scales[: self.dims])
        self.rest.copy_(scales[self.dims : kept])
        if len(variances) > kept:
            self.residual.copy_(variances[kept:].mean().sqrt().clamp(min=LEAST_SCALE))
        self.explained.copy_(variances[: self.dims].sum() / variances.sum().clamp(min=1e-30))
        given = self.expand(self.project(futures.to(self.mean)))
        self.error.copy_((given - futures.to(given)).norm(dim=-1).mean())

    def project(self, futures: torch.Tensor) -> torch.Tensor:
        """Futures (..., T, F) to coordinates (..., d)."""
        centered = (futures / self.unit - self.mean).flatten(-2)
        return centered @ self.components[: self.dims].T / self.scale

    def expand(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Coordinates (..., d) to futures (..., T, F)."""
        flat = (coordinates * self.scale) @ self.components[: self.dims]
        return (flat.unflatten(-1, self.mean.shape) + self.mean) * self.unit

    def log_volume(self, futures: torch.Tensor) -> torch.Tensor:
        """(...,) what to add to the log-density of the coordinates of `futures` (..., T, F) to get
        that of the futures, per unit of all their T F numbers."""
        steps, width = self.mean.shape
        centered = (futures / self.unit - self.mean).flatten(-2)
        along = centered @ self.components.T
        off = (along[..., self.dims :] / self.rest).square().sum(-1)
        left = steps * width - len(self.components)
        if left:
            beyond = centered - along @ self.components
            off = off + beyond.square().sum(-1) / self.residual.square()
        logs = self.rest.log().sum() + left * self.residual.log()
        noise = -0.5 * off - logs - 0.5 * (len(self.rest) + left) * math.log(2 * math.pi)
        return noise - self.scale.log().sum() - steps * self.unit.log().sum()
