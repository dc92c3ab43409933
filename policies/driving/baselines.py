"""Planners without a network, which keep everyone honest: extrapolations as policies."""

from __future__ import annotations

import torch

from fastloop.policies.base import Budget, Plan
from fastloop.policies.driving.extrapolation import (
    Extrapolation,
    constant_acceleration,
    constant_turn_rate,
    constant_velocity,
    stand_still,
    turn_rate,
)
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec, SpecMismatchError

__all__ = ["BASELINES", "HEADING", "STATES", "Baseline"]

STATES, HEADING = "observation.ego_states", "observation.ego_heading"

BASELINES: dict[str, Extrapolation] = {
    "stand_still": stand_still,
    "constant_velocity": constant_velocity,
    "constant_acceleration": constant_acceleration,
    "constant_turn_rate": constant_turn_rate,
}


class Baseline:
    """An extrapolation of the present motion, at the waypoints that `env` asks for.

    It reads ``observation.ego_states`` (P, 6), whose rows are one waypoint's time apart;
    `constant_turn_rate` also reads ``observation.ego_heading`` (P,) where the environment has it,
    and `stand_still` reads nothing. It computes in float64 on the CPU.

    Args:
        name: one of `BASELINES`.
        env: what it plans for; its action must be a waypoint (x, y) and its horizon known.

    Raises:
        SpecMismatchError: when `env` takes no plans of waypoints or does not say what is read.
    """

    def __init__(self, name: str, env: EnvSpec) -> None:
        reads = {
            "stand_still": [],
            "constant_turn_rate": [STATES, *(key for key in env.observations if key == HEADING)],
        }.get(name, [STATES])
        if env.horizon is None or (env.action.kind, env.action.dim) != ("waypoint", 2):
            raise SpecMismatchError(
                f"{name} plans waypoints (x, y) over a horizon; {env.name} takes "
                f"{env.action.dim} elements of kind {env.action.kind}"
                + ("" if env.horizon else ", one a tick")
            )
        if not set(reads) <= set(env.observations):
            offered = ", ".join(env.observations) or "nothing"
            raise SpecMismatchError(f"{name} reads {STATES!r}; {env.name} offers {offered}")
        self.name = self.digest = name
        self.extrapolate = BASELINES[name]
        self.spec = PolicySpec(
            inputs={key: env.observations[key] for key in reads},
            action=env.action, n_obs_steps=1, horizon=env.horizon, n_action_steps=1,
            control_hz=env.control_hz,
        )  # fmt: skip

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Waypoint k (from 0) is for ``(k + 1) / control_hz`` seconds from now."""
        B, dt = len(history), 1 / self.spec.control_hz
        times = torch.arange(1, self.spec.horizon + 1, dtype=torch.float64) * dt
        states, rates = torch.zeros(B, 1, 6).double(), torch.zeros(B).double()
        if STATES in self.spec.inputs:
            states = history[STATES][:, -1].cpu().double()
            headings = (
                history[HEADING][:, -1].cpu().double() if HEADING in self.spec.inputs else None
            )
            rates = turn_rate(states, headings, dt)
        actions = self.extrapolate(states, rates, times).float()
        return Plan(actions=actions, dt=dt, t0=history.ticks)
