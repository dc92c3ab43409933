"""A chain from noise to actions that is drawn towards actions which are known already.

Both ways change what the network answers, so that every sampler takes its steps as it is. With the
path of flow matching, x = (1 - s) x_0 + s noise, any variance-preserving path is the same one up to
a factor; times s are therefore those of all samplers.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Self

import torch

from fastloop.accel.apply import AcceleratedLoop
from fastloop.accel.denoise import DenoiseLoop, PlainLoop
from fastloop.accel.report import AccelReport
from fastloop.accel.samplers import FlowEuler, Sampler
from fastloop.accel.samplers.base import CleanTables, denoise

__all__ = ["GuidedLoop", "Known", "Replaced", "check_steerable", "guidable", "replaced_loop"]


@dataclass(frozen=True)
class Known:
    """What is known of B chunks.

    Attributes:
        actions: (B, T, A) as the network sees them; anything finite where nothing is known.
        weights: (B, T, 1) how much they count, 0 (nothing is known) to 1.
    """

    actions: torch.Tensor
    weights: torch.Tensor


def check_steerable(sampler: Sampler) -> None:
    """Refuse a sampler whose estimate of the clean actions cannot be changed.

    Raises:
        ValueError: for `flow_rk4`, which asks the network where no noise is left.
    """
    if not isinstance(sampler, CleanTables | FlowEuler):
        raise ValueError(
            f"{type(sampler).__name__} evaluates the network where no noise is left, and there a "
            "plan cannot be drawn towards another; say policy.sampler.kind=flow"
        )


def times(sampler: Sampler) -> torch.Tensor:
    """(K,) float64 share of noise s at each step, falling to 0 after the last."""
    if isinstance(sampler, FlowEuler):
        return -sampler.of_output.double().flip(0).cumsum(0).flip(0)
    return torch.sigmoid(-sampler.log_snr.double())


def clean(sampler: Sampler, k: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The clean actions that the network's output at step k stands for."""
    if isinstance(sampler, CleanTables):
        return sampler.predict_clean(k, sample, output)
    assert isinstance(sampler, FlowEuler), "check_steerable comes first"
    return sample + sampler.of_output[k:].sum() * output


class Replaced:
    """The sampler whose clean estimate is replaced by what is known, as much as that counts.

    Where the weight is 1 the chain is the known actions' own way from its noise, and ends at them:
    inpainting (Lugmayr et al. 2022) without training and without a gradient. Where it is 0 nothing
    changes, to the bit.
    """

    def __init__(self, sampler: Sampler, known: Known) -> None:
        self.sampler = sampler
        self.known = known
        self._times = times(sampler).tolist()

    @property
    def timesteps(self) -> torch.Tensor:
        """The sampler's."""
        return self.sampler.timesteps

    @property
    def log_snr(self) -> torch.Tensor:
        """The sampler's."""
        return self.sampler.log_snr

    @property
    def num_noises(self) -> int:
        """The sampler's."""
        return self.sampler.num_noises

    def step(
        self,
        k: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Sampler.step`."""
        sampler, weights = self.sampler, self.known.weights
        wanted = torch.lerp(clean(sampler, k, sample, output), self.known.actions, weights)
        if isinstance(sampler, CleanTables):
            drawn = (wanted - sampler.x0_sample[k] * sample) / sampler.x0_output[k]
        else:
            drawn = (sample - wanted) / self._times[k]
        return sampler.step(k, sample, torch.where(weights > 0, drawn, output), noise, memory)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See `Sampler.to`."""
        known = Known(self.known.actions.to(device, dtype), self.known.weights.to(device, dtype))
        return type(self)(self.sampler.to(device, dtype), known)


def replaced_loop(loop: DenoiseLoop, known: Known) -> DenoiseLoop:
    """`loop` with its sampler `Replaced`. A cached loop reuses what it always does: what it
    approximates it approximates here too, and what is known is exact all the same.

    Raises:
        ValueError: for a loop whose sampler is not its own.
    """
    if isinstance(loop, AcceleratedLoop):
        fast = loop.fast.with_sampler(Replaced(loop.fast.sampler, known))
        return AcceleratedLoop(fast, loop.plain)
    if isinstance(loop, PlainLoop):
        return PlainLoop(loop.network, Replaced(loop.sampler, known))
    raise ValueError(f"a {type(loop).__name__} cannot be drawn towards a plan; say accel=none")


def guidable(loop: DenoiseLoop) -> PlainLoop:
    """The loop whose network can be differentiated, in place of `loop`.

    Raises:
        ValueError: an accelerator reuses parts of the network.
    """
    if isinstance(loop, AcceleratedLoop):
        if not loop.fast.report().exact:
            name = loop.fast.report().name
            raise ValueError(
                f"guidance needs the network's derivative at every step, and what accel={name} "
                "reuses of an earlier step has none: say accel=none, or real_time.form=prefix"
            )
        loop = loop.plain
    if not isinstance(loop, PlainLoop):
        raise ValueError(f"a {type(loop).__name__} cannot be guided; say accel=none")
    return loop


class GuidedLoop:
    """Guidance by the network's vector-Jacobian product (Black et al. 2025; Song et al. 2023).

    At every step the error of the clean estimate on what is known, weighted, goes back through the
    network to the sample, and changes the velocity by w times that, where
    w = min(((1 - s)^2 + s^2) / (s (1 - s)), limit).

    Args:
        loop: what runs without guidance.
        known: what is known.
        limit: of w; None is one over the width of each step, so that none corrects more than the
            whole error. With 5 equal steps that is 5, as published.
    """

    def __init__(self, loop: PlainLoop, known: Known, limit: float | None = None) -> None:
        self.network = loop.network
        self.sampler = loop.sampler
        self.known = known
        s = times(loop.sampler)
        width = s - torch.cat([s[1:], s.new_zeros(1)])
        most = 1 / width if limit is None else torch.full_like(s, limit)
        rises = ((1 - s) ** 2 + s**2) / (s * (1 - s)).clamp(min=1e-12)
        self.gain = torch.minimum(rises, most).tolist()

    def __call__(
        self, noise: torch.Tensor, cond: torch.Tensor | None
    ) -> tuple[torch.Tensor, AccelReport]:
        """See `DenoiseLoop`."""
        started = perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            # Tensors of inference mode cannot be differentiated; their copies can.
            fixed = None if cond is None else cond.clone()
            known = Known(self.known.actions.clone(), self.known.weights.clone())
            sample = denoise(
                self.sampler, lambda k, x: self._guided(k, x, fixed, known), noise.clone()
            )
        return sample, AccelReport(
            network_evaluations=len(self.gain),
            stage_ms={"loop": 1e3 * (perf_counter() - started)},
        )

    def _guided(
        self, k: int, sample: torch.Tensor, cond: torch.Tensor | None, known: Known
    ) -> torch.Tensor:
        """The network's output at step k, guided."""
        sampler = self.sampler
        with torch.enable_grad():
            x = sample.detach().requires_grad_()
            output = self.network(x, sampler.timesteps[k], cond)
            estimate = clean(sampler, k, x, output)
            error = known.weights * (known.actions - estimate.detach())
            (pull,) = torch.autograd.grad(estimate, x, error)
        if isinstance(sampler, CleanTables):
            # x_0 changes by sigma w pull, and the output by that over its own share in x_0.
            noise = torch.sigmoid(-2 * sampler.log_snr[k]).sqrt()
            return output.detach() + self.gain[k] * noise / sampler.x0_output[k] * pull
        return output.detach() - self.gain[k] * pull
