"""What a policy needs and what an environment offers, checked against each other before a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastloop.policies.lags import check_lags

__all__ = ["ActionSpec", "EnvSpec", "PolicySpec", "SpecMismatchError", "TensorSpec", "check_specs"]


class SpecMismatchError(ValueError):
    """A policy and an environment do not fit; the message lists every difference of the two."""


@dataclass(frozen=True)
class TensorSpec:
    """One observation of one frame, without batch and time axes.

    Attributes:
        shape: for instance ``(16,)``, or ``(3, 96, 96)`` for an image (channels first).
        dtype: numpy name; images are ``uint8`` in 0..255.
        low, high: the range of all elements.
        names: what each element of a vector is, or empty when unknown.
        unit: SI unit or the word that says otherwise (``pixel``).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -math.inf
    high: float = math.inf
    names: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        _check_names("an observation", self.names, math.prod(self.shape))


@dataclass(frozen=True)
class ActionSpec:
    """One action of one tick.

    Attributes:
        dim: number of elements A.
        kind: what the numbers mean, for instance ``absolute_position``, ``delta_pose``,
            ``absolute_pose``, ``joint_position``, ``waypoint`` (where to be one tick later).
        low, high: bounds an element, length A.
        names: what each element is, or empty when unknown.
        unit: SI unit or the word that says otherwise.
    """

    dim: int
    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == self.dim:
            raise ValueError(
                f"an action of {self.dim} elements needs {self.dim} bounds on each side, "
                f"got {len(self.low)} lows and {len(self.high)} highs"
            )
        _check_names("an action", self.names, self.dim)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy reads and what it decides.

    Attributes:
        inputs: observation key (LeRobot names) to its spec, in the order of the condition.
        action: the actions that it plans.
        n_obs_steps: O, frames in its window.
        horizon: T, actions that its network predicts, the past ones included.
        n_action_steps: actions executed before it plans again.
        control_hz: actions a second.
        lags: ticks back of each of the O frames, oldest first, the last 0; its O-1 past actions lie
            at the others. By default the frames of the last O ticks.
    """

    inputs: Mapping[str, TensorSpec]
    action: ActionSpec
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    control_hz: float
    lags: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.n_obs_steps, self.n_action_steps, self.control_hz) <= 0:
            raise ValueError(
                "n_obs_steps, n_action_steps and control_hz must be positive, got "
                f"{self.n_obs_steps}, {self.n_action_steps} and {self.control_hz}"
            )
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise ValueError(
                f"{self.n_action_steps} action steps after {self.n_obs_steps - 1} past ones do not "
                f"fit a horizon of {self.horizon}"
            )
        object.__setattr__(self, "lags", check_lags(self.lags, self.n_obs_steps))

    @property
    def ticks_kept(self) -> int:
        """Ticks of an episode that planning may look back at: its frames, and a chunk's actions."""
        return max(1 + self.lags[0], self.horizon)


@dataclass(frozen=True)
class EnvSpec:
    """What an environment shows and what it obeys.

    Attributes:
        name: the environment's name in messages and results.
        observations: observation key to its spec.
        action: the actions that it takes.
        control_hz: ticks a second.
        max_steps: ticks after which an episode times out.
        success: how success is judged, in words for the report.
        horizon: actions of a plan that it judges as a whole (recorded drives); None where it takes
            one action a tick.
    """

    name: str
    observations: Mapping[str, TensorSpec]
    action: ActionSpec
    control_hz: float
    max_steps: int
    success: str = field(default="the environment's own criterion")
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not (self.control_hz > 0 and self.max_steps > 0):
            raise ValueError(
                f"{self.name}: control_hz and max_steps must be positive, got {self.control_hz} "
                f"and {self.max_steps}"
            )


def check_specs(policy: PolicySpec, env: EnvSpec, *, policy_name: str = "policy") -> None:
    """Compare a policy with an environment: names, shapes, units, ranges, action kind, rate, and
    the length of plans where the environment judges whole ones.

    Element names and units are compared where both sides give them.

    Raises:
        SpecMismatchError: with one line per difference, naming both sides.
    """
    faults: list[str] = []
    for key, wanted in policy.inputs.items():
        if key not in env.observations:
            offered = ", ".join(env.observations) or "nothing"
            faults.append(f"{policy_name} reads {key!r}; {env.name} offers {offered}")
            continue
        given = env.observations[key]
        for what in ("shape", "dtype"):
            ours, theirs = getattr(wanted, what), getattr(given, what)
            if ours != theirs:
                faults.append(
                    f"{key}: {policy_name} reads {what} {ours}, {env.name} gives {theirs}"
                )
        faults += _labels(key, policy_name, wanted, env.name, given)
        if given.low < wanted.low or given.high > wanted.high:
            faults.append(
                f"{key}: {policy_name} reads values in [{wanted.low}, {wanted.high}], "
                f"{env.name} gives [{given.low}, {given.high}]"
            )
    faults += _action_faults(policy.action, policy_name, env.action, env.name)
    if not math.isclose(policy.control_hz, env.control_hz):
        faults.append(
            f"rate: {policy_name} acts at {policy.control_hz} Hz, {env.name} ticks at "
            f"{env.control_hz} Hz"
        )
    planned = policy.horizon - (policy.n_obs_steps - 1)
    if env.horizon is not None and planned < env.horizon:
        faults.append(
            f"horizon: {policy_name} plans {planned} actions, {env.name} judges {env.horizon}"
        )
    if faults:
        raise SpecMismatchError(f"{policy_name} cannot drive {env.name}:\n  " + "\n  ".join(faults))


def _action_faults(ours: ActionSpec, policy: str, theirs: ActionSpec, env: str) -> list[str]:
    if ours.dim != theirs.dim:
        return [f"action: {policy} plans {ours.dim} elements, {env} takes {theirs.dim}"]
    faults = []
    if ours.kind != theirs.kind:
        faults.append(f"action: {policy} plans {ours.kind}, {env} takes {theirs.kind}")
    faults += _labels("action", policy, ours, env, theirs)
    if any(a < b for a, b in zip(ours.low, theirs.low, strict=True)) or any(
        a > b for a, b in zip(ours.high, theirs.high, strict=True)
    ):
        faults.append(
            f"action: {policy} plans within {ours.low} to {ours.high}, {env} takes {theirs.low} "
            f"to {theirs.high}"
        )
    return faults


def _labels(
    what: str,
    policy: str,
    ours: TensorSpec | ActionSpec,
    env: str,
    theirs: TensorSpec | ActionSpec,
) -> list[str]:
    faults = []
    if ours.names and theirs.names and ours.names != theirs.names:
        faults.append(
            f"{what}: {policy} names its elements {ours.names}, {env} names them {theirs.names}"
        )
    if ours.unit and theirs.unit and ours.unit != theirs.unit:
        faults.append(f"{what}: {policy} counts in {ours.unit}, {env} in {theirs.unit}")
    return faults


def _check_names(what: str, names: tuple[str, ...], elements: int) -> None:
    if names and len(names) != elements:
        raise ValueError(f"{what} of {elements} elements has {len(names)} names: {names}")
