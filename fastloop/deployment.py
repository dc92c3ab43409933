"""From a configuration to a node: policies loaded and warmed up, transport, replay, recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from fastloop.config import PolicyConfig, RunVerbConfig, SamplerOverrides
from fastloop.deploy.assembly import env_of, make_body, make_loop
from fastloop.deploy.clock import Clock, WallClock
from fastloop.deploy.config import DeployConfig
from fastloop.deploy.loop import Loop
from fastloop.deploy.messages import Messages
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.recorder import Recorder
from fastloop.deploy.recording import BlackBox, Film
from fastloop.deploy.replay import Replay
from fastloop.deploy.transport.base import Sample, Transport
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport
from fastloop.deploy.watchdog import Watchdog
from fastloop.policies.base import Policy
from fastloop.policies.prepare import arriving, example_history, prepare
from fastloop.policies.real_time import real_time
from fastloop.policies.rng import Rng
from fastloop.setup import load

__all__ = ["Deployment", "load_variants", "make_deployment"]

WARM_PLANS = 5
VARIES = ("checkpoint", "n_action_steps", "sampler")


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A node that is ready to run.

    Attributes:
        node: it.
        replay: the recorded drive, where there is one.
        replay_transport: that it is sent on.
        film: of everything that came and went, where it is kept.
    """

    node: Node
    replay: Replay | None
    replay_transport: Transport | None
    film: Path | None

    def run(self, ticks: int | None = None) -> int:
        """Until the drive ends, or after so many ticks; the node's exit code."""
        if self.replay is None or self.replay_transport is None:
            return self.node.run(ticks=ticks)
        self.replay.start(self.replay_transport, self.node.finish)
        try:
            return self.node.run(ticks=ticks)
        finally:
            self.replay.stop()


def load_variants(
    config: RunVerbConfig,
) -> tuple[dict[str, Policy], dict[str, float]]:
    """Every variant of the policy, warm, and the seconds that its plan takes here.

    Raises:
        ValueError: a variant says what variants do not say; and as `load`.
    """
    env = env_of(config.deploy)
    variants, latencies = {}, {}
    for name, changes in (config.deploy.variants or {"full": {}}).items():
        policy = load(_varied(config.policy, name, changes), env, _sampler(config.policy, changes))
        if config.deploy.chunking == "real_time":
            policy = real_time(policy)
        prepare(policy, threads=config.policy.threads)
        variants[name] = policy
        history = arriving(example_history(policy.spec), policy.spec)
        seconds = []
        for _ in range(WARM_PLANS):
            began = perf_counter()
            policy.plan(history, rng=Rng.for_envs(config.seed, [0], [0]))
            seconds.append(perf_counter() - began)
        latencies[name] = median(seconds)
    return variants, latencies


def _varied(policy: PolicyConfig, name: str, changes: Mapping[str, Any]) -> PolicyConfig:
    if unknown := sorted(set(changes) - set(VARIES)):
        raise ValueError(f"variant {name!r} says {unknown}; variants say {', '.join(VARIES)}")
    kept = {key: value for key, value in changes.items() if key != "sampler"}
    return dataclasses.replace(policy, **kept)


def _sampler(policy: PolicyConfig, changes: Mapping[str, Any]) -> SamplerOverrides:
    return dataclasses.replace(policy.sampler, **changes.get("sampler", {}))


def make_deployment(config: RunVerbConfig, folder: Path) -> Deployment:
    """The configured node, which has loaded nothing yet.

    Args:
        folder: where it leaves what it records.

    Raises:
        ValueError: something does not fit; what was given, and what there is.
        OSError: the bag or the port cannot be opened.
        MissingExtraError: without the packages of the extra ``ros``.
    """
    deploy = config.deploy
    if bag := config.bag or deploy.replay.bag:
        deploy = dataclasses.replace(deploy, replay=dataclasses.replace(deploy.replay, bag=bag))
    make_body(deploy)
    messages = Messages(deploy.autoware)
    replay, fed, clock, transport = _world(deploy, messages)
    film = folder / "run.mcap" if config.film else None
    kept: list[BlackBox | Film] = [] if film is None else [Film(film, messages)]
    if deploy.recorder_s > 0:
        recorder = Recorder(folder / "recordings", messages, seconds=deploy.recorder_s, clock=clock)
        kept.append(BlackBox(recorder))

    def tap(sample: Sample) -> None:
        for one in kept:
            one.sent(sample)

    settings = {
        "name": deploy.node.strip("/"), "outputs": dict(deploy.outputs), "frame": deploy.frame,
        "joints": list(deploy.joints), "wheelbase_m": deploy.wheelbase_m,
        "period_s": 1 / deploy.hz, "horizon_s": deploy.waypoints / deploy.plan_hz,
    }  # fmt: skip
    sender = PlanSender(messages, transport, tap=tap, **settings)

    def build() -> Loop:
        variants, latencies = load_variants(dataclasses.replace(config, deploy=deploy))
        return make_loop(deploy, variants, latencies, messages, clock, seed=config.seed)

    node = Node(
        build, transport, sender, clock,
        watchdog=None if replay else _watchdog(deploy, settings),
        listeners=kept, name=deploy.node.strip("/"),
    )  # fmt: skip
    return Deployment(node, replay, fed, film)


def _world(
    deploy: DeployConfig, messages: Messages
) -> tuple[Replay | None, Transport | None, Clock, Transport]:
    """The recorded drive and what it is sent on, or neither; the clock; the node's transport."""
    if not deploy.replay.bag:
        clock = WallClock(deploy.spin_ms / 1e3)
        return None, None, clock, ZenohTransport(messages, _zenoh(deploy), clock)
    topics = {deploy.state.topic, *(one.topic for one in deploy.inputs.values() if one.topic)}
    replay = Replay(deploy.replay.bag, sorted(topics), deploy.replay.pace)
    bus = Bus(replay.clock)
    return replay, LoopbackTransport(messages, bus), replay.clock, LoopbackTransport(messages, bus)


def _zenoh(deploy: DeployConfig) -> ZenohConfig:
    known = [field.name for field in dataclasses.fields(ZenohConfig)]
    if unknown := sorted(set(deploy.zenoh) - set(known)):
        raise ValueError(f"unknown zenoh settings {unknown}; have: {', '.join(known)}")
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in deploy.zenoh.items()}
    return ZenohConfig(**{"node": deploy.node, **lists})


def _watchdog(deploy: DeployConfig, settings: Mapping[str, Any]) -> Watchdog | None:
    if not deploy.watchdog.enabled:
        return None
    zenoh = {**deploy.zenoh, "node": deploy.node + "_watchdog", "listen": []}
    told = {**settings, "zenoh": zenoh, "autoware": deploy.autoware}
    return Watchdog(
        1 / deploy.hz, told,
        silent_periods=deploy.watchdog.silent_periods, hold_s=deploy.watchdog.hold_s,
    )  # fmt: skip
