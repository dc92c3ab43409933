"""Whether a past is like those that were learned."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Familiarity"]

USUAL = 0.999  # share of the training pasts that are usual
LEAST_SHARE = 1e-6  # of the largest variance: directions that hardly vary are as wide


class Familiarity(nn.Module):
    """The Mahalanobis distance of a past to those of training, in units of the largest usual one.

    The effective sample size tells when a mixture lies where no cached future is; but a network
    that extrapolates may well put it among them, whatever it is shown.

    Args:
        steps, width: (O, H) of a past.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(steps * width))
        self.register_buffer("whitening", torch.eye(steps * width))

    @torch.no_grad()
    def fit(self, history: torch.Tensor) -> None:
        """Fit to pasts (n, O, H)."""
        flat = history.flatten(1).double()
        # By their standard deviations first, so that units do not matter.
        unit = flat.std(0, correction=0).clamp(min=1e-6)
        centered = (flat - flat.mean(0)) / unit
        variances, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
        wide = variances.clamp(min=LEAST_SHARE * float(variances.amax().clamp(min=1e-6)))
        whitening = vectors / wide.sqrt() / unit[:, None]
        distances = ((flat - flat.mean(0)) @ whitening).norm(dim=1)
        ordered = distances.sort().values
        limit = ordered[min(int(USUAL * len(ordered)), len(ordered) - 1)].clamp(min=1e-6)
        self.mean.copy_(flat.mean(0))
        self.whitening.copy_(whitening / limit)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Pasts (A, O, H) to (A,); above 1 they are unlike those that were learned."""
        return ((history.flatten(1) - self.mean) @ self.whitening).norm(dim=1)
