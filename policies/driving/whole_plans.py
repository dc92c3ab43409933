"""Planners of waypoints in closed loop: every tick gets the whole plan, and how old it is."""

from __future__ import annotations

import dataclasses
import math

import torch

from fastloop.policies.base import Budget, Plan, Policy
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, PolicySpec, SpecMismatchError

__all__ = ["WholePlans", "plan_action", "plan_rate", "planner_of", "waypoint_env"]

FARTHEST = 1000.0  # m, of a waypoint


def plan_action(waypoints: int, hz: float) -> ActionSpec:
    """The action of an environment that takes a plan every tick: ``[age, x1, y1, ..., xT, yT]``.

    ``age`` (s) says how long ago the observation was made from which the plan came. Waypoints are
    in m in the vehicle's frame of that moment (x forward, y left, origin at the rear axle);
    waypoint k, from 1, is for ``k / hz`` seconds after it. The names say these times. None is
    farther than 1 km to any side.

    Args:
        waypoints: T.
        hz: waypoints a second.

    Raises:
        ValueError: for no waypoints, or no rate.
    """
    if waypoints < 1 or not hz > 0:
        raise ValueError(f"a plan has waypoints at a rate, got {waypoints} at {hz:g} Hz")
    times = [f"{(k + 1) / hz:.6g}s" for k in range(waypoints)]
    return ActionSpec(
        1 + 2 * waypoints, "plan",
        low=(0.0, *(-FARTHEST,) * (2 * waypoints)), high=(math.inf, *(FARTHEST,) * (2 * waypoints)),
        names=("age", *(f"{axis}_{time}" for time in times for axis in "xy")),
    )  # fmt: skip


def plan_rate(action: ActionSpec) -> tuple[int, float]:
    """Waypoints T and waypoints a second of an action that `plan_action` made.

    Raises:
        ValueError: when it did not.
    """
    waypoints = action.dim // 2
    if action.kind == "plan" and action.names[1:]:
        hz = round(waypoints / float(action.names[-1].split("_")[-1].removesuffix("s")), 4)
        if plan_action(waypoints, hz).names == action.names:
            return waypoints, hz
    raise ValueError(
        f"no plan of waypoints: {action.dim} elements of kind {action.kind}, named {action.names}; "
        "plan_action(waypoints, hz) makes one"
    )


def waypoint_env(env: EnvSpec) -> EnvSpec:
    """`env`, which takes whole plans, as a planner of single waypoints sees it.

    Raises:
        ValueError: when `env` takes no whole plans.
    """
    waypoints, hz = plan_rate(env.action)
    action = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")
    return dataclasses.replace(env, action=action, control_hz=hz, horizon=waypoints)


class WholePlans:
    """A planner of waypoints as a policy whose every action is the whole plan and its age.

    Tick k of a plan is the action with age ``k / control_hz``, up to the time of the last waypoint;
    so a chunk whose first ticks have passed still says how old it is, and one that is held beyond
    its end says that it has ended.

    Args:
        policy: plans waypoints (B, T, 2) from one observation; waypoints beyond those that `env`
            takes are cut off.
        env: what it drives; its action is one of `plan_action`.
        n_action_steps: ticks until it plans again; by default those of the waypoints after which
            `policy` would, rounded down, at least 1.

    Raises:
        SpecMismatchError: when `policy` plans anything else, at another rate, or not so far; every
            difference is listed.
        ValueError: when `env` takes no whole plans.
    """

    def __init__(self, policy: Policy, env: EnvSpec, *, n_action_steps: int | None = None) -> None:
        waypoints, hz = plan_rate(env.action)
        _check(policy.spec, env.name, waypoints, hz)
        self.policy = policy
        self.env = env
        self.waypoints = waypoints
        if n_action_steps is None:
            n_action_steps = max(1, int(policy.spec.n_action_steps / hz * env.control_hz + 1e-9))
        self.spec = PolicySpec(
            inputs=policy.spec.inputs, action=env.action, n_obs_steps=1,
            horizon=1 + int(waypoints / hz * env.control_hz + 1e-9),
            n_action_steps=n_action_steps, control_hz=env.control_hz,
        )  # fmt: skip

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """The planner's waypoints (B, T, 2) as (B, ticks, 1 + 2 T); alternatives likewise."""
        # What was executed were whole plans, which the planner would take for waypoints.
        none = ((),) * len(history)
        history = dataclasses.replace(history, actions=none, overridden=none, underway=())
        plan = self.policy.plan(history, rng=rng, budget=budget)
        return dataclasses.replace(
            plan,
            actions=self._aged(plan.actions),
            candidates=None if plan.candidates is None else self._aged(plan.candidates),
            past_actions=None,
            dt=1 / self.spec.control_hz,
        )

    def _aged(self, waypoints: torch.Tensor) -> torch.Tensor:
        """(..., T, 2) to (..., ticks, 1 + 2 T)."""
        ticks = self.spec.horizon
        ages = torch.arange(ticks, device=waypoints.device) / self.spec.control_hz
        flat = waypoints[..., : self.waypoints, :].flatten(-2)[..., None, :].float()
        shape = (*flat.shape[:-2], ticks)
        return torch.cat([ages.expand(shape)[..., None], flat.expand(*shape, -1)], -1)

    @property
    def digest(self) -> str:
        """Of the planner."""
        return str(getattr(self.policy, "digest", ""))

    def with_policy(self, policy: Policy) -> WholePlans:
        """Another planner in this one's place, planning as often."""
        return WholePlans(policy, self.env, n_action_steps=self.spec.n_action_steps)


def planner_of(policy: Policy) -> Policy:
    """What decides inside `policy`: the planner of `WholePlans`, any other policy itself."""
    return policy.policy if isinstance(policy, WholePlans) else policy


def _check(ours: PolicySpec, env: str, waypoints: int, hz: float) -> None:
    faults = []
    if (ours.action.kind, ours.action.dim) != ("waypoint", 2):
        faults.append(
            f"action: it plans {ours.action.dim} elements of kind {ours.action.kind}, {env} takes "
            "waypoints (x, y)"
        )
    if not math.isclose(ours.control_hz, hz):
        faults.append(f"rate: it plans {ours.control_hz} waypoints a second, {env} takes {hz}")
    planned = ours.horizon - (ours.n_obs_steps - 1)
    if planned < waypoints:
        faults.append(f"horizon: it plans {planned} waypoints, {env} takes {waypoints}")
    if ours.n_obs_steps != 1:
        faults.append(
            f"history: it reads {ours.n_obs_steps} observations {1 / ours.control_hz:g} s apart, "
            f"{env} shows one every tick: let it read what one observation holds"
        )
    if faults:
        raise SpecMismatchError(f"the planner cannot drive {env}:\n  " + "\n  ".join(faults))
