"""The condition: a recurrent encoder of the past, and the Gaussian mixture that it regresses."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import softplus

from fastloop.accel.flow_table.mixture import Mixture

__all__ = ["MixtureEncoder"]

FARTHEST = 1e3  # standard deviations from the mean that an input is told apart
NEAR = 8.0  # times as finely what is near is told
LEAST_DEVIATION = 0.03  # of whitened coordinates: float32 densities stay exact to 1e-2 nats


class MixtureEncoder(nn.Module):
    """History, command and neighbors of A agents to a mixture of M Gaussians in d dimensions.

    A one-layer GRU reads the history, as in the paper; the neighbors are each seen by the same
    network, at two scales, to tell finely what is near, and the maximum over them is kept (deep
    sets), so that their order does not matter and there may be none.

    Args:
        history: H, numbers of one time of the past.
        dims: d.
        components: M.
        width: of all hidden layers.
        command: C, 0 for no command.
        neighbors: numbers that are known of each neighbor, 0 for no neighbors.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    neighbor_scale: torch.Tensor

    def __init__(
        self, history: int, dims: int, *, components: int, width: int, command: int = 0,
        neighbors: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dims, self.components = dims, components
        self.register_buffer("mean", torch.zeros(history))
        self.register_buffer("scale", torch.ones(history))
        self.recurrent = nn.GRU(history, width, batch_first=True)
        self.newest = nn.Linear(history, width)
        self.command = nn.Linear(command, width) if command else None
        self.neighbor = (
            nn.Sequential(nn.Linear(2 * neighbors, width), nn.SiLU(), nn.Linear(width, width))
            if neighbors
            else None
        )
        if neighbors:
            self.register_buffer("neighbor_scale", torch.ones(neighbors))
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(width, 2 * width), nn.SiLU(),
            nn.Linear(2 * width, components * (1 + 2 * dims)),
        )  # fmt: skip
        with torch.no_grad():  # components begin apart, all over the base space
            means = self.head[-1].bias.view(components, -1)[:, 1 : 1 + dims]
            means.copy_(torch.randn(components, dims))

    @torch.no_grad()
    def fit(self, history: torch.Tensor, neighbors: torch.Tensor | None = None) -> None:
        """Take the scales of histories (n, O, H), and of neighbors (n, P, ...) where there are."""
        self.mean.copy_(history.double().mean((0, 1)))
        self.scale.copy_(history.double().std((0, 1), correction=0).clamp(min=1e-3))
        if neighbors is not None:
            flat = neighbors.flatten(2)
            there = flat[flat.isfinite().all(-1)]
            self.neighbor_scale.copy_(there.square().mean(0).sqrt().clamp(min=1e-3))

    def forward(
        self,
        history: torch.Tensor,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Mixture:
        """Of A agents: (A, O, H), (A, C), (A, P, ...) with NaN for who is not there."""
        seen = ((history - self.mean) / self.scale).clamp(-FARTHEST, FARTHEST)
        hidden = self.recurrent(seen)[0][:, -1] + self.newest(seen[:, -1])
        if self.command is not None:
            hidden = hidden + self.command(command)
        if neighbors is not None:
            hidden = hidden + self.around(neighbors)
        rows = self.head(hidden).unflatten(-1, (self.components, -1))
        weights, means, spread = rows.split([1, self.dims, self.dims], -1)
        deviations = LEAST_DEVIATION + softplus(spread)
        return Mixture(weights[..., 0].log_softmax(-1), means, deviations.square())

    def around(self, neighbors: torch.Tensor) -> torch.Tensor:
        """What is made of the neighbors of A agents: (A, width)."""
        assert self.neighbor is not None
        flat = neighbors.flatten(2)
        there = flat.isfinite().all(-1, keepdim=True)
        rows = torch.where(there, flat, 0.0) / self.neighbor_scale
        rows = torch.cat([rows.clamp(-FARTHEST, FARTHEST), (NEAR * rows).tanh()], -1)
        each = self.neighbor(rows)
        nobody = each.new_zeros(len(each), 1, each.shape[-1])
        return torch.cat([torch.where(there, each, 0.0), nobody], 1).amax(1)
