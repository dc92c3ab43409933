"""The trained part of CacheFlow: factorization, unconditional flow, conditional mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from fastloop.accel.flow_table.mixture import Mixture
from fastloop.policies.cacheflow.factorization import Factorization
from fastloop.policies.cacheflow.familiarity import Familiarity
from fastloop.policies.cacheflow.flow import FLOWS, Flow
from fastloop.policies.cacheflow.mixture import MixtureEncoder
from fastloop.policies.cacheflow.samples import Samples, condition_of

__all__ = ["CacheFlowConfig", "CacheFlowModel"]

SMOOTHING = 0.02  # of a whitened coordinate: futures that repeat have no infinite density


@dataclass(frozen=True)
class CacheFlowConfig:
    """Sizes and objective.

    Attributes:
        dims: d, numbers that a future is made of.
        components: M, Gaussians of a condition's mixture.
        width: of the encoder.
        flow: one of `FLOWS`: `coupling`, or `continuous` as in the paper.
        flow_layers, flow_width: of the flow.
        joint: flow and mixture learn together; otherwise the flow learns to make a standard normal
            into futures, and the mixture what the flow gives.
        standardize: each element of a future gets a unit of its own, see `Factorization.fit`.
        budget: K, futures in the cache at most.
    """

    dims: int = 8
    components: int = 16
    width: int = 128
    flow: str = "coupling"
    flow_layers: int = 6
    flow_width: int = 64
    joint: bool = True
    standardize: bool = False
    budget: int = 4096

    def __post_init__(self) -> None:
        if self.flow not in FLOWS:
            raise ValueError(f"unknown flow {self.flow!r}; have: {', '.join(FLOWS)}")
        for name, value in asdict(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class CacheFlowModel(nn.Module):
    """p(x | c) = q(z | c) / |det J_f(z)| with all of the condition in the mixture q.

    Args:
        config: sizes and objective.
        history, future: (O, H) and (T, F) of a sample.
        command, neighbors: numbers of a command, and of one neighbor; 0 for none.
    """

    def __init__(
        self,
        config: CacheFlowConfig,
        history: tuple[int, int],
        future: tuple[int, int],
        *,
        command: int = 0,
        neighbors: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.shapes = {
            "history": history, "future": future, "command": command, "neighbors": neighbors,
        }  # fmt: skip
        self.factorization = Factorization(*future, config.dims)
        self.flow: Flow = FLOWS[config.flow](
            config.dims, layers=config.flow_layers, width=config.flow_width
        )
        self.familiarity = Familiarity(*history, neighbors)
        self.encoder = MixtureEncoder(
            history[1], config.dims, components=config.components, width=config.width,
            command=command, neighbors=neighbors,
        )  # fmt: skip

    @classmethod
    def new(cls, config: CacheFlowConfig, samples: Samples) -> CacheFlowModel:
        """Fresh weights with factorization and scales fitted to `samples`."""
        one = {name: tuple(part.shape[1:]) for name, part in samples.rows(slice(None)).items()}
        others = torch.Size(one.get("neighbors", (0, 0))[1:]).numel()
        model = cls(
            config, one["history"], one["future"], command=one.get("command", (0,))[0],
            neighbors=others,
        )  # fmt: skip
        model.factorization.fit(samples.future, standardize=config.standardize)
        model.encoder.fit(samples.history, samples.neighbors)
        model.familiarity.fit(samples.history, samples.neighbors)
        return model

    def condition(
        self,
        history: torch.Tensor,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> Mixture:
        """The mixtures of A agents.

        Raises:
            ValueError: as `check`.
        """
        self.check(history, command, neighbors)
        return self.encoder(history, command, neighbors)

    def check(
        self,
        history: torch.Tensor,
        command: torch.Tensor | None = None,
        neighbors: torch.Tensor | None = None,
    ) -> None:
        """Refuse what no mixture can be made of.

        Raises:
            ValueError: fewer past steps than needed, or of another width; numbers that are not
                finite, but for neighbors who are NaN all over and not there; a command or neighbors
                that are missing, or that nothing was learned of.
        """
        steps = self.shapes["history"]
        if tuple(history.shape[1:]) != steps:
            raise ValueError(
                f"a history of {steps[0]} steps of {steps[1]} numbers is needed, got "
                f"{' x '.join(map(str, history.shape[1:]))}"
            )
        given = {"command": command, "neighbors": neighbors}
        for name, part in given.items():
            if (part is None) != (not self.shapes[name]):
                what = "needs" if part is None else "was learned without"
                raise ValueError(f"this model {what} {name}")
        if command is not None and command.shape[1:] != (self.shapes["command"],):
            raise ValueError(
                f"a command of {self.shapes['command']} numbers is needed, got "
                f"{tuple(command.shape[1:])}"
            )
        for name, part in {"history": history, "command": command}.items():
            if part is not None and not part.isfinite().all():
                raise ValueError(f"{name} must hold finite numbers only")
        if neighbors is not None:
            wanted, there = self.shapes["neighbors"], neighbors.flatten(2).isfinite()
            if there.shape[-1] != wanted:
                raise ValueError(
                    f"{wanted} numbers of each neighbor are needed, got "
                    f"{tuple(neighbors.shape[2:])}"
                )
            if neighbors.isinf().any() or (there.any(-1) != there.all(-1)).any():
                raise ValueError("a neighbor must be finite numbers only, or NaN only: not there")

    def base(self, futures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z (..., d) of futures (..., T, F), and what is to be subtracted from log q(z | c) (...,)
        for the log-density of the futures.

        Raises:
            ValueError: for futures of another shape.
        """
        if tuple(futures.shape[-2:]) != self.shapes["future"]:
            raise ValueError(
                f"futures of {' x '.join(map(str, self.shapes['future']))} numbers are known, got "
                f"{' x '.join(map(str, futures.shape[-2:]))}"
            )
        z, log_det = self.flow.inverse(self.factorization.project(futures))
        return z, log_det - self.factorization.log_volume(futures)

    def futures(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., d) to futures (..., T, F)."""
        return self.factorization.expand(self.flow(z)[0])

    def log_prob(self, mixture: Mixture, futures: torch.Tensor) -> torch.Tensor:
        """log p(x | c) of N futures of each agent, (A, N, T, F) to (A, N), through the flow."""
        z, log_det = self.base(futures)
        return mixture.log_prob(z) - log_det

    def loss(
        self, batch: Mapping[str, torch.Tensor], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Scalar, in nats a sample up to a constant.

        Jointly, the coupling flow learns by exact likelihood, the continuous one as published: flow
        matching from a standard normal, and the mixture's likelihood of z, learned through f^-1.
        """
        with torch.autocast(batch["future"].device.type, enabled=False):
            y = self.factorization.project(batch["future"])
            y = y + SMOOTHING * torch.randn(y.shape, generator=generator).to(y)
            mixture = self.encoder(**condition_of(batch))
            if self.config.joint and self.config.flow == "coupling":
                z, log_det = self.flow.inverse(y)
                return (log_det - mixture.log_prob(z[:, None])[:, 0]).mean()
            z = self.flow.base(y)
            z = z if self.config.joint else z.detach()
            return self.flow.loss(y, generator) - mixture.log_prob(z[:, None]).mean()

    def digest(self) -> str:
        """Of flow and factorization: what a cache depends on."""
        made = hashlib.sha256(repr((self.config.flow, self.shapes["future"])).encode())
        for part in (self.factorization, self.flow):
            for name, value in sorted(part.state_dict().items()):
                made.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()
