"""How far an arm's actions are from those of the policy as published, on the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.bench.chunks import Chunks
from fastloop.policies.diffusion.policy import DiffusionPolicy

__all__ = ["ActionError", "Actions", "decide"]


@dataclass(frozen=True)
class ActionError:
    """Absolute differences over `n` chunks and all elements of their actions.

    Attributes:
        mean, largest: of normalized actions.
        mean_in_units, largest_in_units: of actions as the environment takes them.
        n: chunks.
    """

    mean: float
    largest: float
    mean_in_units: float
    largest_in_units: float
    n: int


@dataclass(frozen=True)
class Actions:
    """What a policy decides, from the present tick on.

    Attributes:
        normalized, in_units: (B, T, A).
    """

    normalized: torch.Tensor
    in_units: torch.Tensor

    def error_from(self, published: Actions) -> ActionError:
        """The differences from what the policy as published decides."""
        normalized = (self.normalized - published.normalized).abs()
        in_units = (self.in_units - published.in_units).abs()
        return ActionError(
            float(normalized.mean()), float(normalized.max()),
            float(in_units.mean()), float(in_units.max()), len(normalized),
        )  # fmt: skip


@torch.inference_mode()
def decide(policy: DiffusionPolicy, chunks: Chunks) -> Actions:
    """Run `policy` on all chunks at once."""
    sample, _ = policy.loop(*chunks.inputs(policy))
    in_units = policy.model.unnormalize_actions(sample, policy.observations(chunks.history))
    past = policy.spec.n_obs_steps - 1
    return Actions(sample[:, past:].cpu().double(), in_units[:, past:].cpu().double())
