"""A diffusion policy's weights: observation encoder, denoiser and normalizer in one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import mse_loss

from fastloop.accel.samplers import FlowPath, NoiseSchedule
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.objective import Objective
from fastloop.policies.diffusion.unet import ConditionalUnet1D

__all__ = ["DiffusionModel", "steps_between"]

ACTION = "action"
EMBEDDING = "embedding"


class DiffusionModel(nn.Module):
    """The trained part of a diffusion policy, under its published state-dict prefixes.

    Args:
        model: the denoiser, `TransformerForDiffusion`, `ConditionalUnet1D`, `CrossUnet1D` or
            `DiT`.
        normalizer: per observation key and for ``action``.
        keys: observation keys in the order in which they make up the condition.
        obs_encoder: turns raw observations into features (B, O, F); None concatenates the
            normalized low-dimensional observations.
        relative_to: observation of the actions' length; inside the network an action is what is to
            be added to its newest value. None keeps actions as they are.
        cumulative: inside the network an action is the step to it from the action before, the first
            one from the origin; the normalizer's ``action`` is of these steps.
    """

    def __init__(
        self,
        model: nn.Module,
        normalizer: LinearNormalizer,
        keys: Sequence[str],
        obs_encoder: nn.Module | None = None,
        *,
        relative_to: str | None = None,
        cumulative: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalizer = normalizer
        self.keys = tuple(keys)
        self.obs_encoder = obs_encoder
        self.relative_to = relative_to
        self.cumulative = cumulative

    def condition(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Observation tokens (B, O, D) of raw observations (B, O, ...), or those that come with
        them as ``embedding``."""
        if EMBEDDING in observations and EMBEDDING not in self.keys:
            return observations[EMBEDDING]
        if self.obs_encoder is not None:
            features: torch.Tensor = self.obs_encoder(observations, self.normalizer)
            return features
        normalized = [self.normalizer.normalize(key, observations[key]) for key in self.keys]
        return torch.cat([value.flatten(2) for value in normalized], dim=-1)

    def normalize_actions(
        self, actions: torch.Tensor, observations: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Actions (B, T, A) of the world as the network sees them."""
        if self.relative_to is not None:
            actions = actions - observations[self.relative_to][:, -1:]
        if self.cumulative:
            actions = steps_between(actions)
        return self.normalizer.normalize(ACTION, actions)

    def unnormalize_actions(
        self, sample: torch.Tensor, observations: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The network's actions (B, T, A) in the world."""
        actions = self.normalizer.unnormalize(ACTION, sample)
        if self.cumulative:
            actions = actions.cumsum(1)
        if self.relative_to is not None:
            actions = actions + observations[self.relative_to][:, -1:]
        return actions

    def denoise(
        self, sample: torch.Tensor, timestep: torch.Tensor, cond: torch.Tensor | None
    ) -> torch.Tensor:
        """One call of the network: (B, T, A) in, (B, T, A) out; `timestep` scalar or (B,)."""
        if type(self.model) is ConditionalUnet1D:  # one vector; `CrossUnet1D` attends to tokens
            flat = None if cond is None else cond.flatten(1)
            return self.model(sample, timestep, global_cond=flat)
        return self.model(sample, timestep, cond)

    def loss(
        self,
        batch: Mapping[str, torch.Tensor],
        schedule: NoiseSchedule | FlowPath,
        prediction_type: str,
        *,
        generator: torch.Generator | None = None,
        objective: Objective | None = None,
    ) -> torch.Tensor:
        """Mean squared error: of denoising (Ho et al. 2020) or of flow matching.

        Args:
            batch: observations (B, O, ...) by key and ``action`` (B, T, A), all raw.
            schedule: how noise is added.
            prediction_type: what the network predicts; flow matching has its own.
            generator: source of noise, steps and lengths of context.
            objective: which actions are learned, and how many frames are seen; all by default.

        Returns:
            scalar.
        """
        actions = self.normalize_actions(batch[ACTION], batch)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        steps = schedule.draw(len(actions), generator).to(actions.device)
        first = 0
        if objective is not None:
            # Drawn last, so that noise and steps are those of any other objective.
            frames = objective.draw(generator)
            first, seen = objective.first(frames), objective.seen(frames).to(actions.device)
            batch = {key: value[:, seen] for key, value in batch.items() if key != ACTION}
        output = self.denoise(
            schedule.add_noise(actions, noise, steps), steps, self.condition(batch)
        )
        target = schedule.target(actions, noise, steps, prediction_type)
        return mse_loss(output[:, first:], target[:, first:])


def steps_between(actions: torch.Tensor) -> torch.Tensor:
    """The step to each of the actions (B, T, A) from the one before, to the first from 0."""
    return torch.diff(actions, dim=1, prepend=torch.zeros_like(actions[:, :1]))
