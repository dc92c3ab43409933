"""The diffusion policy: observations to condition, noise to actions through a denoise loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.denoise import DenoiseLoop, PlainLoop
from fastloop.accel.report import AccelReport
from fastloop.accel.samplers import Sampler
from fastloop.policies.base import Budget, Plan
from fastloop.policies.diffusion.cross_unet import CrossUnet1D
from fastloop.policies.diffusion.cross_unet_stack import CrossUnetStack
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.dit_stack import DiTStack
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.diffusion.unet_stack import UnetStack
from fastloop.policies.diffusion.window import Window
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec

__all__ = ["DiffusionPolicy"]

STACKS: dict[type, Callable[[Any, torch.Tensor], ResidualStack]] = {
    TransformerForDiffusion: TransformerStack,
    ConditionalUnet1D: UnetStack,
    CrossUnet1D: CrossUnetStack,
    DiT: DiTStack,
}


class DiffusionPolicy:
    """Diffusion Policy (Chi et al. 2023) as a pure function of history.

    Args:
        spec: what it reads and decides.
        model: its weights; put in evaluation mode, and not to be changed any more.
        sampler: the chain from noise to actions.
        digest: of the checkpoint, for provenance and to match cache plans.
    """

    def __init__(
        self, spec: PolicySpec, model: DiffusionModel, sampler: Sampler, *, digest: str = ""
    ) -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.sampler = sampler
        self.digest = digest
        self.loop: DenoiseLoop = PlainLoop(model.denoise, sampler)
        self.window = Window(model, tuple(spec.inputs))

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Denoise one chunk per environment; the budget is not used."""
        chunks, report, reports = self.draw(history, self.noises(rng, 1))
        actions = chunks[:, 0].float().cpu()
        past = self.spec.n_obs_steps - 1
        return Plan(
            actions=actions[:, past:],
            dt=1.0 / self.spec.control_hz,
            t0=history.ticks,
            past_actions=actions[:, :past],
            report=report,
            reports=reports,
        )

    @torch.inference_mode()
    def draw(
        self, history: History, noise: torch.Tensor
    ) -> tuple[torch.Tensor, AccelReport, tuple[AccelReport, ...]]:
        """N chunks for each environment, from one condition, in one chain.

        Args:
            history: of B environments.
            noise: (num_noises, B, N, T, A), see `noises`.

        Returns:
            (B, N, T, A) actions in the environment's units, past ones first, on the weights'
            device and in their dtype; the report of all, and one for each environment where they
            differ.
        """
        rows = noise.shape[1:3]
        encoded = self.window.encode(history)
        cond = encoded.cond.repeat_interleave(rows[1], 0)
        sample, report = self.loop(noise.flatten(1, 2).to(cond), cond)
        actions = self.model.unnormalize_actions(sample, self.reference(history, rows[1]))
        report = report.settled()  # the actions are waited for anyway
        reports: tuple[AccelReport, ...] = ()
        if encoded.frames is not None:
            window = cond.shape[1]
            reports = tuple(
                replace(report, frames_encoded=new, frames_remembered=window - new)
                for new in encoded.frames
            )
            report = replace(
                report,
                frames_encoded=sum(encoded.frames),
                frames_remembered=window * len(history) - sum(encoded.frames),
            )
        return actions.unflatten(0, rows), report, reports

    def condition(self, history: History) -> torch.Tensor:
        """Observation tokens (B, O, D) of a history."""
        return self.window.encode(history).cond

    def observations(self, history: History) -> dict[str, torch.Tensor]:
        """What the policy reads of a history, on the weights' device and in their dtype."""
        return self.window.read(history)

    def reference(self, history: History, samples: int = 1) -> dict[str, torch.Tensor]:
        """What `DiffusionModel.normalize_actions` reads of a history, for `samples` chunks an
        environment: (B * samples, O, ...) by key."""
        keys = [self.model.relative_to] if self.model.relative_to else []
        read = self.window.read(history, keys)
        return {key: value.repeat_interleave(samples, 0) for key, value in read.items()}

    def noise(self, rng: Rng) -> torch.Tensor:
        """All noise of one chain, (num_noises, B, T, A), drawn per environment before the loop."""
        return self.noises(rng, 1)[:, :, 0]

    def noises(self, rng: Rng, samples: int) -> torch.Tensor:
        """Noise of as many chains an environment, (num_noises, B, samples, T, A); that of the first
        does not depend on how many there are."""
        shape = (self.sampler.num_noises, self.spec.horizon, self.spec.action.dim)
        streams = ["noise", *(f"noise of candidate {n}" for n in range(1, samples))]
        drawn = [rng.normal(shape, stream=stream) for stream in streams]
        return torch.stack(drawn, 1).permute(2, 0, 1, 3, 4)

    def stack(self, kernels: Sequence[str] = ()) -> ResidualStack:
        """The network as a list of residual branches, for block caches.

        Args:
            kernels: kinds of branches that run fused, see `TransformerStack`.

        Raises:
            ValueError: for networks that are no stack of residual branches, or have no such kernel.
        """
        network = self.model.model
        if type(network) not in STACKS:
            raise ValueError(
                f"block caches need one of {', '.join(known.__name__ for known in STACKS)}, this "
                f"policy has {type(network).__name__}; use accel=none"
            )
        if not kernels:
            return STACKS[type(network)](network, self.sampler.timesteps)
        if not isinstance(network, TransformerForDiffusion):
            raise ValueError(
                f"accel.kernels={list(kernels)} are for TransformerForDiffusion, this policy has "
                f"{type(network).__name__}; leave accel.kernels empty"
            )
        return TransformerStack(network, self.sampler.timesteps, kernels)

    def with_loop(self, loop: DenoiseLoop) -> DiffusionPolicy:
        """The same weights run through another denoise loop."""
        other = copy.copy(self)
        other.loop = loop
        return other

    def to(self, *args: Any, **kwargs: Any) -> DiffusionPolicy:
        """A new policy with its weights on another device or in another dtype, un-accelerated."""
        model = copy.deepcopy(self.model).to(*args, **kwargs)
        weight = next(model.model.parameters())
        sampler = self.sampler.to(weight.device, weight.dtype)
        return DiffusionPolicy(self.spec, model, sampler, digest=self.digest)
