"""From a configuration to a node: transport, replay, watchdog, recordings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastloop.config import RunVerbConfig
from fastloop.deploy.assembly import make_body, make_loop
from fastloop.deploy.clock import Clock, ToldClock, WallClock
from fastloop.deploy.config import DeployConfig
from fastloop.deploy.foxglove import foxglove_layout
from fastloop.deploy.loop import Loop
from fastloop.deploy.messages import Messages
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.recorder import Recorder
from fastloop.deploy.recording import BlackBox, Film
from fastloop.deploy.replay import Replay
from fastloop.deploy.services import serve_lifecycle
from fastloop.deploy.systemd import Systemd
from fastloop.deploy.transport.base import Sample, Transport
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport, beside, numbered
from fastloop.deploy.watchdog import Watchdog
from fastloop.ros_parameters import with_parameters
from fastloop.variants import load_variants, read_variants

__all__ = ["Deployment", "make_deployment"]


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A node that is ready to run.

    Attributes:
        node: it.
        replay: the recorded drive, where there is one.
        replay_transport: that it is sent on.
        film: of everything that came and went, where it is kept.
        deploy: its settings, parameter files read.
    """

    node: Node
    replay: Replay | None
    replay_transport: Transport | None
    film: Path | None
    deploy: DeployConfig

    def run(self, ticks: int | None = None) -> int:
        """Until the drive ends, or after so many ticks; the node's exit code.

        Raises:
            BagError: the drive ends in damage.
        """
        if self.replay is None or self.replay_transport is None:
            return self.node.run(ticks=ticks)
        self.replay.start(self.replay_transport, self.node.finish)
        try:
            code = self.node.run(ticks=ticks)
        finally:
            self.replay.stop()
        if self.replay.error:
            raise self.replay.error
        return code


def make_deployment(config: RunVerbConfig, folder: Path) -> Deployment:
    """The configured node, which has loaded nothing yet.

    Args:
        folder: where it leaves what it records.

    Raises:
        ValueError: something does not fit; what was given, and what there is.
        OSError: the bag or the port cannot be opened.
        MissingExtraError: without the packages of the extra ``ros``.
    """
    deploy = with_parameters(config.deploy, config.params) if config.params else config.deploy
    if bag := config.bag or deploy.replay.bag:
        deploy = dataclasses.replace(deploy, replay=dataclasses.replace(deploy.replay, bag=bag))
    if not min(deploy.hz, deploy.plan_hz) > 0:
        raise ValueError(
            "deploy.hz and deploy.plan_hz must be above 0, got "
            f"{deploy.hz:g} and {deploy.plan_hz:g}"
        )
    make_body(deploy)
    read_variants(deploy.variants, deploy.calibration.bag)
    messages = Messages(deploy.autoware)
    zenoh = numbered(_zenoh(deploy))
    replay, fed, clock, transport = _world(deploy, messages, zenoh)
    film = folder / "run.mcap" if config.film else None
    if film is not None or deploy.recorder_s > 0:
        layout = json.dumps(foxglove_layout(deploy), indent=2)
        (folder / "foxglove.json").write_text(layout + "\n", encoding="utf-8")
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
        settled = dataclasses.replace(config, deploy=deploy)
        variants, latencies = load_variants(settled, lambda doing: setattr(node, "waiting", doing))
        return make_loop(deploy, variants, latencies, messages, clock, seed=config.seed)

    node = Node(
        build, transport, sender, clock,
        watchdog=None if replay else _watchdog(deploy, zenoh, settings),
        listeners=kept, name=deploy.node.strip("/"), autostart=deploy.autostart,
        systemd=Systemd(),
    )  # fmt: skip
    serve_lifecycle(node.lifecycle, transport, messages, deploy.node)
    return Deployment(node, replay, fed, film, deploy)


def _world(
    deploy: DeployConfig, messages: Messages, zenoh: ZenohConfig
) -> tuple[Replay | None, Transport | None, Clock, Transport]:
    """The recorded drive and what it is sent on, or neither; the clock; the node's transport."""
    if not deploy.replay.bag:
        told = ToldClock()
        clock = told if deploy.use_sim_time else WallClock(deploy.spin_ms / 1e3)
        transport = ZenohTransport(messages, zenoh, clock)
        if deploy.use_sim_time:
            transport.subscribe(
                "/clock", "rosgraph_msgs/msg/Clock", lambda one: told.tell(one.stamp_ns or 0)
            )
        return None, None, clock, transport
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


def _watchdog(
    deploy: DeployConfig, zenoh: ZenohConfig, settings: Mapping[str, Any]
) -> Watchdog | None:
    if not deploy.watchdog.enabled or deploy.use_sim_time:
        return None
    own = beside(zenoh, deploy.node + "_watchdog", tuple(deploy.watchdog.listen))
    told = {**settings, "zenoh": dataclasses.asdict(own), "autoware": deploy.autoware}
    return Watchdog(
        1 / deploy.hz, told,
        silent_periods=deploy.watchdog.silent_periods, hold_s=deploy.watchdog.hold_s,
    )  # fmt: skip
