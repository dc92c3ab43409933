"""Runs the vehicle bench and reports."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastloop.bench.vehicle.config import VehicleBenchConfig, VehicleBounds
from fastloop.bench.vehicle.faults import Survived, survive
from fastloop.bench.vehicle.source import CAMERA, STATE
from fastloop.bench.vehicle.straight import EGO, IMAGE, PLAN_HZ, WAYPOINTS, Straight
from fastloop.bench.vehicle.victim import PLAN
from fastloop.deploy.assembly import make_loop
from fastloop.deploy.clock import WallClock
from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.messages import Messages
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport
from fastloop.deploy.watchdog import Watchdog
from fastloop.run_folder import make_run_dir, write_result

__all__ = ["run"]


def run(config: VehicleBenchConfig) -> int:
    """Measure, write the run folder and print the table.

    Returns:
        0, or 1 when a kill was not noticed, or a fault brought the node to its knees: a message
        that nobody can follow, an exception that nobody caught.
    """
    _check(config)
    console = Console()
    folder = make_run_dir("bench", config.run_dir)
    with console.status(f"ticking at {config.hz:g} Hz for {config.seconds:g} s"):
        began = time.process_time()
        node = _ticks(config)
        spent_ms = 1e3 * (time.process_time() - began)
    with console.status(f"killing {config.kills} nodes"):
        takeovers = [_kill(config) for _ in range(config.kills)]
    survived = None
    if config.fault_seconds > 0:
        with console.status(f"a fault after the other for {config.fault_seconds:g} s"):
            survived = survive(config, folder)
    return _report(config, node, spent_ms, takeovers, survived, folder, console)


def _check(config: VehicleBenchConfig) -> None:
    for name in ("hz", "seconds", "kill_hz", "fault_hz"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    for name in ("kills", "fault_seconds"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")


def _free_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{free.getsockname()[1]}"


def _ticks(config: VehicleBenchConfig) -> Node:
    """A node that has ticked for the time that was asked, with a watchdog beside it."""
    width, height = config.image_size
    endpoint = _free_endpoint()
    messages, clock = Messages(), WallClock(config.spin_ms / 1e3)
    period_ms = 1e3 / config.hz
    deploy = DeployConfig(
        hz=config.hz, deadline_ms=0.8 * period_ms, epsilon_ms=0.1 * period_ms,
        state=InputConfig(STATE, "nav_msgs/msg/Odometry"),
        inputs={
            IMAGE: InputConfig(CAMERA, "sensor_msgs/msg/Image"),
            EGO: InputConfig(reads="ego_states", shape=[1, 6]),
        },
        plan_hz=PLAN_HZ, waypoints=WAYPOINTS,
    )  # fmt: skip
    transport = ZenohTransport(
        messages, ZenohConfig("/bench", listen=(endpoint,), connect=()), clock
    )
    told = {"name": "bench", "outputs": {PLAN: "autoware_planning_msgs/msg/Trajectory"}}
    beside = {"node": "/dog", "listen": [], "connect": [endpoint]}
    watchdog = Watchdog(1 / config.hz, {**told, "zenoh": beside, "autoware": "unbounded"})
    policy = Straight(config.hz, width, height)
    node = Node(
        lambda: make_loop(deploy, {"full": policy}, {"full": 1e-3}, messages, clock),
        transport, PlanSender(messages, transport, **told), clock, watchdog=watchdog, name="bench",
    )  # fmt: skip
    command = [sys.executable, "-m", "fastloop.bench.vehicle.source", endpoint]
    source = subprocess.Popen([*command, str(config.hz), str(width), str(height)])
    try:
        node.run(ticks=round(config.seconds * config.hz))
    finally:
        source.kill()
        source.wait()
    return node


def _kill(config: VehicleBenchConfig) -> float:
    """Seconds from the kill of a node to the watchdog's message."""
    endpoint = _free_endpoint()
    messages = Messages()
    transport = ZenohTransport(messages, ZenohConfig("/ear", listen=(endpoint,), connect=()))
    heard = threading.Event()
    transport.subscribe(PLAN, "nav_msgs/msg/Path", lambda sample: heard.set())
    command = [sys.executable, "-m", "fastloop.bench.vehicle.victim", endpoint]
    victim = subprocess.Popen([*command, str(config.kill_hz)], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    try:
        for _ in range(round(config.kill_hz)):  # a second: by then the two have met
            victim.stdout.readline()
        victim.kill()
        began = time.monotonic()
        return time.monotonic() - began if heard.wait(10.0) else float("inf")
    finally:
        victim.kill()
        victim.wait()
        transport.close()


def _report(
    config: VehicleBenchConfig,
    node: Node,
    spent_ms: float,
    takeovers: list[float],
    survived: Survived | None,
    folder: Path,
    console: Console,
) -> int:
    assert node.loop is not None
    loop, bounds = node.loop, config.bounds
    stages = loop.stages.summary()
    periods = [taken * config.kill_hz for taken in takeovers]
    noticed = sum(taken <= bounds.takeover_periods for taken in periods)
    rows: list[tuple[str, float, str, float | None, int]] = []
    for stage, told in stages.items():
        for name in ("p50_ms", "p99_ms", "max_ms"):
            aim = getattr(bounds, f"{stage}_{name}", None)
            rows.append((f"{stage}_{name}", told[name], "ms", aim, int(told["n"])))
    if periods:
        aim = bounds.takeover_periods
        rows.append(("takeover_max", max(periods), "periods", aim, len(periods)))
    ticks = loop.rungs.total() - 1  # the last one is the stop that was asked for
    rows.append(("processor_time_a_tick", spent_ms / ticks, "ms", None, ticks))
    rows.append(("ticks_with_a_fresh_plan", loop.rungs[0] / ticks, "1", None, ticks))
    rows += _survival(survived, bounds)
    table = Table("what", "measured", "aim", "unit", "n")
    for what, value, unit, bound, n in rows:
        aimed = "" if bound is None else f"{bound:g}"
        style = "red" if bound is not None and not value <= bound else ""
        table.add_row(what, f"{value:.3f}", aimed, unit, str(n), style=style)
    console.print(table)
    metrics: dict[str, dict[str, Any]] = {
        what: {"value": value, "unit": unit, "n": n} for what, value, unit, _, n in rows
    }
    metrics["takeovers_in_time"] = {"value": noticed, "unit": "1", "n": len(takeovers)}
    failed = False
    if survived is not None:
        failed = survived.invalid + survived.internal + len(survived.raised) > 0
        _print_faults(survived, console)
        for fault, rungs in survived.rungs.items():
            worst = {"value": max(rungs), "unit": "rung", "n": rungs.total()}
            metrics["worst_rung_" + fault.replace(" ", "_")] = worst
    write_result(folder, "bench", config, metrics, errors=loop.last_error)
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return int(failed or noticed < len(takeovers) or loop.counts["internal errors"] > 0)


def _survival(
    survived: Survived | None, bounds: VehicleBounds
) -> list[tuple[str, float, str, float | None, int]]:
    if survived is None:
        return []
    n, raised = survived.ticks, len(survived.raised) + survived.internal
    return [
        ("faults_ticks_without_a_message", survived.skipped, "1", 0.0, n + survived.skipped),
        ("faults_invalid_messages", survived.invalid, "1", 0.0, n),
        ("faults_unhandled_exceptions", raised, "1", 0.0, n),
        ("faults_memory_growth", survived.growth, "1", bounds.memory_growth, 1),
    ]


def _print_faults(survived: Survived, console: Console) -> None:
    table = Table("fault", "rung 0", "1", "2", "3", "why, at its worst")
    for fault, rungs in survived.rungs.items():
        why = survived.reasons.get(fault, (0, ""))[1]
        table.add_row(fault, *(str(rungs[rung]) for rung in range(4)), Text(why))
    console.print(table)
    for words in survived.raised:
        console.print(words, style="red", markup=False)
