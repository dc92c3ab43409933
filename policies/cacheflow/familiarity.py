"""Whether a past, and who is around, is like what was learned."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Familiarity"]

USUAL = 0.999  # share of the training situations that are usual
KNOWN = 2048  # neighbors of training that are remembered
LOOKED_AT = 4096  # situations by which is said what is usual
LEAST_SHARE = 1e-6  # of the largest variance: directions that hardly vary are as wide


class Familiarity(nn.Module):
    """How unlike a situation is those of training, in units of the most unlike usual one.

    The effective sample size tells when a mixture lies where no cached future is; but a network
    that extrapolates may well put it among them, whatever it is shown.

    A past is as unlike as its Mahalanobis distance from the others; neighbors as their mean
    distance to the nearest of `KNOWN` neighbors of training; and a situation as the more unlike of
    the two.

    Args:
        steps, width: (O, H) of a past.
        neighbors: numbers that are known of each neighbor, 0 for no neighbors.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    unit: torch.Tensor
    known: torch.Tensor

    def __init__(self, steps: int, width: int, neighbors: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(steps * width))
        self.register_buffer("whitening", torch.eye(steps * width))
        if neighbors:
            self.register_buffer("unit", torch.ones(neighbors))
            self.register_buffer("known", torch.zeros(KNOWN, neighbors))

    @torch.no_grad()
    def fit(self, history: torch.Tensor, neighbors: torch.Tensor | None = None) -> None:
        """Fit to pasts (n, O, H) with their neighbors (n, P, ...), NaN where nobody is."""
        flat = history.flatten(1).double()
        # By their standard deviations first, so that units do not matter.
        unit = flat.std(0, correction=0).clamp(min=1e-6)
        centered = (flat - flat.mean(0)) / unit
        variances, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
        wide = variances.clamp(min=LEAST_SHARE * float(variances.amax().clamp(min=1e-6)))
        whitening = vectors / wide.sqrt() / unit[:, None]
        limit = _usual(((flat - flat.mean(0)) @ whitening).norm(dim=1))
        self.mean.copy_(flat.mean(0))
        self.whitening.copy_(whitening / limit)
        if neighbors is not None:
            self._fit_neighbors(neighbors.flatten(2))

    def _fit_neighbors(self, neighbors: torch.Tensor) -> None:
        # What is usual is said by other situations than those whose neighbors are known.
        known, others = neighbors[::2], neighbors[1::2] if len(neighbors) > 1 else neighbors
        everyone = known[known.isfinite().all(-1)]
        if not len(everyone):
            raise ValueError("hardly anybody is around in the samples: leave the neighbors out")
        random = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(everyone), generator=random)[:KNOWN]
        unit = everyone.std(0, correction=0).clamp(min=1e-3)
        self.unit.copy_(unit)
        self.known.copy_((everyone / unit)[chosen].repeat(-(-KNOWN // len(chosen)), 1)[:KNOWN])
        rows = torch.linspace(0, len(others) - 1, min(LOOKED_AT, len(others))).long()
        limit = _usual(torch.cat([self._strangeness(some) for some in others[rows].split(64)]))
        self.unit.mul_(limit)
        self.known.div_(limit)

    def _strangeness(self, neighbors: torch.Tensor) -> torch.Tensor:
        """(A, P, W) to (A,), 0 where nobody is around."""
        there = neighbors.isfinite().all(-1)
        rows = torch.where(there[..., None], neighbors, 0.0) / self.unit
        apart = torch.cdist(rows.flatten(0, 1), self.known).amin(1).view(there.shape)
        return (apart * there).sum(1) / there.sum(1).clamp(min=1)

    def forward(self, history: torch.Tensor, neighbors: torch.Tensor | None = None) -> torch.Tensor:
        """Pasts (A, O, H) with neighbors (A, P, ...) to (A,); above 1 they are unlike those that
        were learned."""
        past = ((history.flatten(1) - self.mean) @ self.whitening).norm(dim=1)
        if neighbors is None:
            return past
        return torch.maximum(past, self._strangeness(neighbors.flatten(2)))


def _usual(distances: torch.Tensor) -> torch.Tensor:
    """The largest one that is usual."""
    ordered = distances.sort().values
    return ordered[min(int(USUAL * len(ordered)), len(ordered) - 1)].clamp(min=1e-6)
