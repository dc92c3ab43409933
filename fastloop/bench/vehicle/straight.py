"""A policy that costs next to nothing."""

from __future__ import annotations

import torch

from fastloop.policies.base import Budget, Plan
from fastloop.policies.driving.whole_plans import plan_action
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec, TensorSpec

__all__ = ["EGO", "IMAGE", "PLAN_HZ", "WAYPOINTS", "Straight"]

WAYPOINTS, PLAN_HZ = 20, 4.0
IMAGE, EGO = "observation.images.front", "observation.ego_states"


class Straight:
    """Straight on, with a look at the picture."""

    def __init__(self, hz: float, width: int, height: int) -> None:
        self.spec = PolicySpec(
            inputs={IMAGE: TensorSpec((3, height, width), "uint8"), EGO: TensorSpec((1, 6))},
            action=plan_action(WAYPOINTS, PLAN_HZ),
            n_obs_steps=1,
            horizon=1,
            n_action_steps=1,
            control_hz=hz,
        )

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Constant velocity."""
        times = torch.arange(1, WAYPOINTS + 1) / PLAN_HZ
        x = history[EGO][:, -1, -1, 2, None] * times
        waypoints = torch.stack([x, torch.zeros_like(x)], -1).flatten(1)
        age = torch.zeros(len(history), 1)
        actions = torch.cat([age, waypoints], -1)[:, None]
        return Plan(actions=actions, dt=1 / self.spec.control_hz, t0=history.ticks)
