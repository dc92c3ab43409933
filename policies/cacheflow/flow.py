"""Invertible maps from a base space to the coordinates of futures, with their log-determinants."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["FLOWS", "ContinuousFlow", "CouplingFlow", "Flow"]

Rates = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


class Flow(nn.Module, abc.ABC):
    """y = f(z), both (..., d), the same for every condition."""

    @abc.abstractmethod
    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f(z) and log |det J_f(z)| (...,)."""

    @abc.abstractmethod
    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z = f^-1(y) and log |det J_f(z)| (...,), of f and not of its inverse."""

    @abc.abstractmethod
    def base(self, y: torch.Tensor) -> torch.Tensor:
        """z alone, cheap enough to learn through."""

    @abc.abstractmethod
    def loss(self, y: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Scalar, smallest where a standard normal z gives the distribution of y."""


class _Coupling(nn.Module):
    """Half of the numbers scale and shift the others (Dinh et al. 2017)."""

    kept: torch.Tensor

    def __init__(self, dims: int, width: int, parity: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(dims) % 2 == parity, persistent=False)
        self.network = nn.Sequential(
            nn.Linear(dims, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2 * dims),
        )  # fmt: skip
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def terms(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithms of the scales, at most e either way, and shifts; 0 for what is kept."""
        scale, shift = self.network(x * self.kept).chunk(2, -1)
        moved = ~self.kept
        return scale.tanh() * moved, shift * moved


class CouplingFlow(Flow):
    """Affine couplings that take turns (RealNVP): exact in both directions, one pass each.

    Coordinates keep their places, so that z stays about as whitened coordinates are.

    Args:
        dims: d.
        layers: couplings.
        width: of their hidden layers.
    """

    def __init__(self, dims: int, *, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(_Coupling(dims, width, k % 2) for k in range(layers))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Flow.forward`."""
        log_det = z.new_zeros(z.shape[:-1])
        for coupling in self.couplings:
            scale, shift = coupling.terms(z)
            z, log_det = z * scale.exp() + shift, log_det + scale.sum(-1)
        return z, log_det

    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Flow.inverse`."""
        log_det = y.new_zeros(y.shape[:-1])
        for coupling in reversed(self.couplings):
            scale, shift = coupling.terms(y)
            y, log_det = (y - shift) * (-scale).exp(), log_det + scale.sum(-1)
        return y, log_det

    def base(self, y: torch.Tensor) -> torch.Tensor:
        """See `Flow.base`."""
        return self.inverse(y)[0]

    def loss(self, y: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Negative log-likelihood under a standard normal."""
        z, log_det = self.inverse(y)
        normal = 0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return (normal + log_det).mean()


class ContinuousFlow(Flow):
    """A velocity field, integrated from time 0 to 1 with as many Runge-Kutta steps either way, and
    learned by flow matching along straight paths (Lipman et al. 2023; Liu et al. 2023).

    The log-determinant is the integral of the exact divergence, for which the field is
    differentiated d times: inverse and forward are as exact as the steps are short.

    Args:
        dims: d.
        layers, width: hidden layers of the field.
        steps: of integration.
    """

    def __init__(self, dims: int, *, layers: int = 3, width: int = 128, steps: int = 24) -> None:
        super().__init__()
        self.steps = steps
        hidden: list[nn.Module] = []
        for inward in (dims + 3, *[width] * (layers - 1)):
            hidden += [nn.Linear(inward, width), nn.SiLU()]
        self.field = nn.Sequential(*hidden, nn.Linear(width, dims))

    def velocity(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(..., d) at points (..., d) and times (..., 1)."""
        angle = math.pi * time
        return self.field(torch.cat([x, time, angle.cos(), angle.sin()], -1))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Flow.forward`."""
        return self._integrate(z, 0.0, 1.0, self.steps, self._with_divergence)

    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Flow.inverse`."""
        z, log_det = self._integrate(y, 1.0, 0.0, self.steps, self._with_divergence)
        return z, -log_det

    def base(self, y: torch.Tensor) -> torch.Tensor:
        """See `Flow.base`; in a third of the steps, without the divergence."""
        return self._integrate(y, 1.0, 0.0, max(1, self.steps // 3), self._without)[0]

    def loss(self, y: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean squared error of the velocity, from standard normal points straight to y."""
        start = torch.randn(y.shape, generator=generator).to(y)
        time = torch.rand((*y.shape[:-1], 1), generator=generator).to(y)
        found = self.velocity(torch.lerp(start, y, time), time)
        return (found - (y - start)).square().sum(-1).mean()

    def _without(self, x: torch.Tensor, time: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self.velocity(x, x.new_full((*x.shape[:-1], 1), time)), x.new_zeros(x.shape[:-1])

    def _with_divergence(self, x: torch.Tensor, time: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity and its divergence (...,); also under `torch.inference_mode`."""
        differentiated = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x
            x = x if x.requires_grad else x.detach().requires_grad_()
            speed, _ = self._without(x, time)
            divergence = torch.stack(
                [
                    torch.autograd.grad(
                        speed[..., i].sum(), x, retain_graph=True, create_graph=differentiated
                    )[0][..., i]
                    for i in range(x.shape[-1])
                ]
            ).sum(0)
        return (speed, divergence) if differentiated else (speed.detach(), divergence)

    def _integrate(
        self, x: torch.Tensor, start: float, end: float, steps: int, rates: Rates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The classical Runge-Kutta method, for the point and the integral of the divergence."""
        h, total = (end - start) / steps, x.new_zeros(x.shape[:-1])
        for k in range(steps):
            t = start + k * h
            v1, d1 = rates(x, t)
            v2, d2 = rates(x + h / 2 * v1, t + h / 2)
            v3, d3 = rates(x + h / 2 * v2, t + h / 2)
            v4, d4 = rates(x + h * v3, t + h)
            x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return x, total


FLOWS: dict[str, type[Flow]] = {"coupling": CouplingFlow, "continuous": ContinuousFlow}
