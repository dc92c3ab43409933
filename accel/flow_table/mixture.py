"""A Gaussian mixture for each agent, and its log-density as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["LEAST_WEIGHT", "Mixture", "features_of"]

LEAST_WEIGHT = 1e-4


def features_of(z: torch.Tensor) -> torch.Tensor:
    """What a Gaussian's log-density is linear in: points (K, d) to [z^2, z, 1] (K, 2 d + 1)."""
    return torch.cat([z.square(), z, torch.ones_like(z[..., :1])], -1)


@dataclass(frozen=True)
class Mixture:
    """Mixtures of M Gaussians with diagonal covariance in d dimensions, one for each of A agents.

    Attributes:
        log_weights: (A, M), whose exponentials are 1 in all.
        means, variances: (A, M, d).
    """

    log_weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    def __len__(self) -> int:
        return len(self.log_weights)

    def __getitem__(self, rows: slice | torch.Tensor) -> Mixture:
        """Those of some agents."""
        return Mixture(self.log_weights[rows], self.means[rows], self.variances[rows])

    @property
    def matrix(self) -> torch.Tensor:
        """(A, 2 d + 1, M): ``features_of(z) @ matrix`` is each component's weighted log-density.

        It is the difference of terms as large as z^2 / variance, so that its error is about as
        large a multiple of the number format's: below 1e-3 in float32 for |z| / sigma up to 50.
        """
        precisions = 1 / self.variances
        constant = self._heights - 0.5 * (self.means.square() * precisions).sum(-1)
        parts = [-0.5 * precisions, self.means * precisions, constant[..., None]]
        return torch.cat(parts, -1).transpose(1, 2)

    @property
    def _heights(self) -> torch.Tensor:
        """(A, M) each component's weighted log-density at its mean."""
        width = math.log(2 * math.pi) * self.means.shape[-1]
        return self.log_weights - 0.5 * (self.variances.log().sum(-1) + width)

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """Exact log-density of N points of each agent, (A, N, d) to (A, N), differentiable."""
        distances = (z[:, :, None] - self.means[:, None]).square() / self.variances[:, None]
        each = self._heights[:, None] - 0.5 * distances.sum(-1)
        return each.logsumexp(-1)

    def pruned(self, least: float = LEAST_WEIGHT) -> Mixture:
        """Without the components that are lighter than `least`, the heaviest excepted.

        Not exact: the density at a point falls by what these components gave there (it never rises,
        as the other weights stay), and all probability by `left_out`, so that no event's
        probability is wrong by more than ``left_out / (1 - left_out)``. Agents that keep fewer
        components than others are filled up with components of weight 0.
        """
        heaviest = self.log_weights.amax(-1, keepdim=True)
        kept = (self.log_weights >= math.log(least)) | (self.log_weights == heaviest)
        most = int(kept.sum(-1).max())
        if most == kept.shape[-1] and bool(kept.all()):
            return self
        order = kept.byte().sort(dim=-1, descending=True, stable=True).indices[:, :most]
        weights = self.log_weights.masked_fill(~kept, -math.inf).gather(1, order)
        places = order[..., None].expand(-1, -1, self.means.shape[-1])
        return Mixture(weights, self.means.gather(1, places), self.variances.gather(1, places))

    @property
    def left_out(self) -> torch.Tensor:
        """(A,) the probability that `pruned` took away, 0 of a whole mixture."""
        return (1 - self.log_weights.exp().sum(-1)).clamp(min=0)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Points (A, N, d) made of standard normal noise (A, N, 1 + d); the first number of each
        chooses the component, so that an agent's points depend on its own noise alone."""
        shares = self.log_weights.exp().cumsum(-1)
        level = torch.special.ndtr(noise[..., 0]) * shares[:, -1:]
        chosen = torch.searchsorted(shares, level.contiguous())
        places = chosen[..., None].expand(-1, -1, self.means.shape[-1])
        deviations = self.variances.gather(1, places).sqrt()
        return torch.addcmul(self.means.gather(1, places), deviations, noise[..., 1:])
