"""From the waypoints of an answer to a plan that an environment takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastloop.policies.driving.extrapolation import constant_velocity
from fastloop.policies.spec import EnvSpec, SpecMismatchError
from fastloop.policies.vla.interpolation import interpolate
from fastloop.policies.vla.schema import Schema, Waypoints

__all__ = ["WaypointPlan"]


class WaypointPlan:
    """The one field of a schema that is waypoints (x, y), as `env` wants them.

    Args:
        schema: of the answer.
        env: its action must be a waypoint (x, y) and its horizon known.

    Raises:
        SpecMismatchError: where `env` takes something else, or plans further or finer than the
            answer's waypoints reach.
        ValueError: for a schema with more or less than one field of waypoints (x, y).
    """

    def __init__(self, schema: Schema, env: EnvSpec) -> None:
        found = [(path, kind) for path, kind in schema.fields() if isinstance(kind, Waypoints)]
        if len(found) != 1 or found[0][1].dim != 2 or found[0][1].count < 2:
            raise ValueError(f"{schema.name} needs one field of several waypoints (x, y)")
        self.path, self.kind = found[0]
        if env.horizon is None or (env.action.kind, env.action.dim) != ("waypoint", 2):
            raise SpecMismatchError(
                f"{schema.name} answers with waypoints (x, y) over a horizon; {env.name} takes "
                f"{env.action.dim} elements of kind {env.action.kind}"
                + ("" if env.horizon else ", one a tick")
            )
        self.horizon, self.hz = env.horizon, env.control_hz
        self.points = round(self.kind.step_s * env.control_hz)
        fits = self.points > 0 and abs(self.points - self.kind.step_s * env.control_hz) < 1e-6
        if not fits or self.kind.count * self.points < env.horizon:
            raise SpecMismatchError(
                f"{schema.name} has {self.kind.count} waypoints {self.kind.step_s} s apart; "
                f"{env.name} wants {env.horizon} at {env.control_hz} Hz"
            )

    def __call__(self, values: Mapping[str, Any]) -> torch.Tensor:
        """Waypoints (T, 2) float32 of the values of an answer that holds them."""
        value: Any = values
        for key in self.path.split("."):
            value = value[key]
        knots = torch.tensor(value, dtype=torch.float64)
        return interpolate(knots, points=self.points)[: self.horizon].float()

    def straight_on(self, states: torch.Tensor) -> torch.Tensor:
        """Waypoints (T, 2) float32 at the present velocity of (O, 6) ego states."""
        times = torch.arange(1, self.horizon + 1, dtype=torch.float64) / self.hz
        states = states.cpu().double()[None]
        return constant_velocity(states, states.new_zeros(1), times)[0].float()
