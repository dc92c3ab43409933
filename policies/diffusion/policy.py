"""The diffusion policy: observations to condition, noise to actions through a denoise loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from fastloop.accel.block_cache.stack import ResidualStack
from fastloop.accel.denoise import DenoiseLoop, PlainLoop
from fastloop.accel.samplers import Sampler
from fastloop.policies.base import Budget, Plan
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.dit_stack import DiTStack
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.diffusion.unet_stack import UnetStack
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec

__all__ = ["DiffusionPolicy"]

STACKS: dict[type, Callable[[Any, torch.Tensor], ResidualStack]] = {
    TransformerForDiffusion: TransformerStack,
    ConditionalUnet1D: UnetStack,
    DiT: DiTStack,
}


class DiffusionPolicy:
    """Diffusion Policy (Chi et al. 2023) as a pure function of history.

    Args:
        spec: what it reads and decides.
        model: its weights; put in evaluation mode.
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

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Denoise one chunk per environment; the budget is not used."""
        with torch.inference_mode():
            observations = self.observations(history)
            cond = self.model.condition(observations)
            noise = self.noise(rng).to(cond)
            sample, report = self.loop(noise, cond)
            actions = self.model.unnormalize_actions(sample, observations).float().cpu()
        past = self.spec.n_obs_steps - 1
        return Plan(
            actions=actions[:, past:],
            dt=1.0 / self.spec.control_hz,
            t0=history.ticks,
            past_actions=actions[:, :past],
            report=report.settled(),  # the actions are on the host already
        )

    def condition(self, history: History) -> torch.Tensor:
        """Observation tokens (B, O, D) of a history."""
        return self.model.condition(self.observations(history))

    def observations(self, history: History) -> dict[str, torch.Tensor]:
        """What the policy reads of a history, on the weights' device and in their dtype."""
        weight = next(self.model.model.parameters())
        observations = {}
        for key in self.spec.inputs:
            value = history[key].to(weight.device)
            observations[key] = value.to(weight.dtype) if value.is_floating_point() else value
        return observations

    def noise(self, rng: Rng) -> torch.Tensor:
        """All noise of one chain, (num_noises, B, T, A), drawn per environment before the loop."""
        shape = (self.sampler.num_noises, self.spec.horizon, self.spec.action.dim)
        return rng.normal(shape).transpose(0, 1)

    def stack(self) -> ResidualStack:
        """The network as a list of residual branches, for block caches.

        Raises:
            ValueError: for networks that are no stack of residual branches.
        """
        network = self.model.model
        if type(network) not in STACKS:
            raise ValueError(
                f"block caches need one of {', '.join(known.__name__ for known in STACKS)}, this "
                f"policy has {type(network).__name__}; use accel=none"
            )
        return STACKS[type(network)](network, self.sampler.timesteps)

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
