"""From a configuration and policies to a loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fastloop.deploy.anytime import Anytime
from fastloop.deploy.arm import Arm
from fastloop.deploy.bodies import Body
from fastloop.deploy.clock import Clock, VirtualClock
from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.conversions.joints import arm_state
from fastloop.deploy.conversions.odometry import check_frame, vehicle_state
from fastloop.deploy.gate import ArmLimits, VehicleLimits
from fastloop.deploy.health.stages import Stages
from fastloop.deploy.inputs import Inputs, Topic
from fastloop.deploy.ladder import Ladder
from fastloop.deploy.loop import Loop, LoopConfig
from fastloop.deploy.messages import Messages
from fastloop.deploy.motion import State
from fastloop.deploy.planner import Reader, SessionPlanner, inputs_of
from fastloop.deploy.readers import READS, make_picture, make_reader
from fastloop.deploy.transport.base import Sample
from fastloop.deploy.vehicle import Vehicle
from fastloop.deploy.worker import InlineWorker, ThreadWorker, Worker
from fastloop.policies.base import Policy
from fastloop.policies.chunks import Chunking, RecedingHorizon, TemporalEnsemble
from fastloop.policies.driving.whole_plans import plan_action
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec

__all__ = ["env_of", "make_body", "make_inputs", "make_loop"]

SHAPES: dict[str, tuple[int, ...]] = {"ego_states": (1, 6), "ego_heading": (1,), "number": ()}
RAW = "sensor_msgs/msg/Image"
DTYPES = {"picture": "uint8", "number": "int64"}


def env_of(config: DeployConfig) -> EnvSpec:
    """What the machine shows and obeys, for policies that ask."""
    shown = {}
    for key, given in config.inputs.items():
        reads = _reads(config, given)
        shape = tuple(given.shape) or SHAPES.get(reads, (len(config.joints),))
        shown[key] = TensorSpec(shape, DTYPES.get(reads, "float32"))
    if config.body == "vehicle":
        action = plan_action(config.waypoints, config.plan_hz)
    else:
        none = (math.inf,) * len(config.joints)
        action = ActionSpec(
            len(config.joints), "joint_position", tuple(-x for x in none), none, unit="rad"
        )
    return EnvSpec(config.node.strip("/"), shown, action, config.hz, max_steps=2**31)


def make_body(config: DeployConfig) -> Body:
    """What moves.

    Raises:
        ValueError: for an unknown body or limit; the known ones are listed.
    """
    if config.body not in ("vehicle", "arm"):
        raise ValueError(f"unknown body {config.body!r}; have: vehicle, arm")
    kind: Any = VehicleLimits if config.body == "vehicle" else ArmLimits
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(config.limits) - set(known)):
        raise ValueError(f"unknown limits {unknown}; have: {', '.join(known)}")
    limits = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.limits.items()})
    if config.body == "vehicle":
        return Vehicle(config.plan_hz, limits)
    if not config.joints:
        raise ValueError("an arm needs the names of its joints: say deploy.joints=[...]")
    return Arm(len(config.joints), limits)


def make_loop(
    config: DeployConfig,
    variants: Mapping[str, Policy],
    latencies_s: Mapping[str, float],
    messages: Messages,
    clock: Clock,
    *,
    seed: int = 0,
) -> Loop:
    """The loop of `config` round warm policies.

    Args:
        variants: policies that plan the same actions, the best first.
        latencies_s: of each when it was warmed up.
        messages: the types.
        clock: with a virtual one plans take virtual time.
        seed: of the noise.

    Raises:
        ValueError: something does not fit; with what was given and what there is.
    """
    body = make_body(config)
    policy = next(iter(variants.values()))
    kinds = ("plan",) if config.body == "vehicle" else ("joint_position", "absolute_position")
    if policy.spec.action.kind not in kinds:
        raise ValueError(
            f"a {config.body} is driven by {' or '.join(kinds)}; the policy plans "
            f"{policy.spec.action.kind} of {policy.spec.action.dim} elements"
        )
    _check_rate(config, variants)
    inputs, readers = make_inputs(config, variants, messages, clock)
    chunking = _chunking(config, policy)

    def planner() -> SessionPlanner:
        return SessionPlanner(variants, readers, chunking=chunking, seed=seed)

    planner()  # what does not fit is said now
    period = 1 / config.hz
    loop = LoopConfig(
        period_s=period,
        deadline_s=min(config.deadline_ms / 1e3, period),
        epsilon_s=config.epsilon_ms / 1e3,
        plan_every=config.plan_every or policy.spec.n_action_steps,
        budget_s=config.budget_ms / 1e3,
        hang_s=config.hang_s,
    )
    followed = loop.plan_every * period
    if followed > config.max_plan_age_s + 1e-9:
        raise ValueError(
            f"a plan is followed for {loop.plan_every} ticks, {followed:g} s, and may be "
            f"{config.max_plan_age_s:g} s old: raise deploy.max_plan_age_s, or say "
            "deploy.plan_every to plan sooner"
        )
    ladder = Ladder(
        body, period_s=period, max_plan_age_s=config.max_plan_age_s,
        recover_after=config.recover_after, state_age_s=config.state.max_age_s or 0.3,
    )  # fmt: skip
    worker: Worker
    if isinstance(clock, VirtualClock):
        fixed = config.replay.latency_ms
        worker = InlineWorker(planner, clock, None if fixed is None else lambda job: fixed / 1e3)
    else:
        worker = ThreadWorker(planner, clock)
    return Loop(inputs, worker, ladder, Anytime(latencies_s), clock, loop, Stages(clock.now))


def make_inputs(
    config: DeployConfig, variants: Mapping[str, Policy], messages: Messages, clock: Clock
) -> tuple[Inputs, dict[str, Reader]]:
    """What is listened to, and how that fills what the policies read; raises as `make_loop`."""
    read = inputs_of(variants)
    inputs = Inputs(
        _topics(config, read, messages), clock,
        state=config.state.topic, max_skew_s=config.max_skew_s, future_s=config.future_s,
    )  # fmt: skip
    return inputs, _readers(config, read)


def _reads(config: DeployConfig, given: InputConfig) -> str:
    return given.reads or READS.get(given.type or config.state.type, "values")


def _check_rate(config: DeployConfig, variants: Mapping[str, Policy]) -> None:
    """An action is for a tick: at another rate it would be another speed."""
    for name, policy in variants.items():
        if not math.isclose(policy.spec.control_hz, config.hz):
            raise ValueError(
                f"variant {name!r} acts {policy.spec.control_hz:g} times a second, the node ticks "
                f"{config.hz:g} times: say deploy.hz={policy.spec.control_hz:g}"
            )


def _readers(config: DeployConfig, inputs: Mapping[str, TensorSpec]) -> dict[str, Reader]:
    readers = {}
    for key, given in config.inputs.items():
        if key in inputs:
            spec = inputs[key]
            readers[key] = make_reader(
                _reads(config, given), given.topic, spec.shape, spec.dtype, config.plan_hz
            )
    return readers


def _topics(
    config: DeployConfig, read: Mapping[str, TensorSpec], messages: Messages
) -> list[Topic]:
    """The state's, and those that readers read, each once.

    A raw picture is made on arrival, so that no tick waits for it. Decoding a compressed one takes
    longer than its messages may wait.
    """

    def state(sample: Sample, time: float) -> State:
        message = messages.decode(sample.type, sample.data)
        if config.body == "vehicle":
            check_frame(message, config.frame)
            return vehicle_state(message, time=time)
        return arm_state(message, config.joints, time=time)

    def message(sample: Sample, time: float) -> Any:
        decoded = messages.decode(sample.type, sample.data)
        if sample.type == "nav_msgs/msg/Path":
            check_frame(decoded, config.frame)
        return decoded

    topics = [Topic(config.state.topic, config.state.type, state, config.state.max_age_s, True)]
    for given in config.inputs.values():
        if given.topic and given.topic not in [topic.name for topic in topics]:
            ahead = [
                make_picture(read[key].shape, read[key].dtype)
                for key, other in config.inputs.items()
                if key in read
                and (other.topic, other.type) == (given.topic, RAW)
                and _reads(config, other) == "picture"
            ]
            topics.append(
                Topic(given.topic, given.type, message, given.max_age_s, ahead=tuple(ahead))
            )
    for topic in topics:
        messages.prepare(topic.type)
    return topics


def _chunking(config: DeployConfig, policy: Policy) -> Chunking:
    if config.chunking in ("receding", "real_time"):
        return RecedingHorizon(policy.spec.n_action_steps)
    if config.chunking != "ensemble" or policy.spec.action.kind == "plan":
        whole = policy.spec.action.kind == "plan"
        have = "receding" if whole else "receding, ensemble, real_time"
        raise ValueError(f"unknown chunking {config.chunking!r} for a {config.body}; have: {have}")
    return TemporalEnsemble()
