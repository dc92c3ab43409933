"""The slow copy of a network that is evaluated and shipped."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["EMA"]


class EMA:
    """Exponential moving average with a decay that grows with the steps taken.

    After n steps the decay is 1 - (1 + (n - update_after_step - 1) / inv_gamma) ** -power, at most
    `max_decay`, and 0 (a plain copy) before that: the schedule published with Diffusion Policy.

    Args:
        model: copied, the copy in evaluation mode and without gradients.
        power, max_decay, inv_gamma, update_after_step: of the schedule.

    Attributes:
        averaged: the copy; parameters that are trained are averaged, others and buffers copied.
        step: updates so far.
    """

    def __init__(
        self,
        model: nn.Module,
        power: float = 0.75,
        max_decay: float = 0.9999,
        inv_gamma: float = 1.0,
        update_after_step: int = 0,
    ) -> None:
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.power = power
        self.max_decay = max_decay
        self.inv_gamma = inv_gamma
        self.update_after_step = update_after_step
        self.step = 0

    def decay(self) -> float:
        """The weight of the old average in the next update."""
        steps = self.step - self.update_after_step - 1
        if steps <= 0:
            return 0.0
        return min(1 - (1 + steps / self.inv_gamma) ** -self.power, self.max_decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards `model`, after each step of its optimizer."""
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        ours = dict(self.averaged.named_parameters()) | dict(self.averaged.named_buffers())
        theirs = dict(model.named_parameters()) | dict(model.named_buffers())
        averages = [ours[name] for name in ours if name in trained]
        torch._foreach_lerp_(averages, [theirs[n] for n in ours if n in trained], 1 - self.decay())
        for name, value in ours.items():
            if name not in trained:
                value.copy_(theirs[name])
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """The average and its step, to resume a training run."""
        return {"step": self.step, "averaged": self.averaged.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.averaged.load_state_dict(state["averaged"])
        self.step = state["step"]
