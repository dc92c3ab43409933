"""A node that is given one fault after the other in real time, and what it published meanwhile."""

from __future__ import annotations

import io
import random
import resource
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastloop.bench.vehicle.config import VehicleBenchConfig
from fastloop.bench.vehicle.straight import EGO, IMAGE, PLAN_HZ, WAYPOINTS, Straight
from fastloop.deploy.assembly import make_loop
from fastloop.deploy.clock import WallClock
from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.ladder import STOP
from fastloop.deploy.loop import Published
from fastloop.deploy.messages import Messages
from fastloop.deploy.motion import SPEED, Motion
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.recorder import Recorder
from fastloop.deploy.recording import BlackBox
from fastloop.deploy.transport.base import Sample
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.extras import require
from fastloop.policies.base import Budget, Plan
from fastloop.policies.history import History
from fastloop.policies.rng import Rng

__all__ = ["FAULTS", "Survived", "survive"]

STATE, CAMERA, PLAN = "/odometry", "/camera", "/plan"
SIZE = (64, 48)
SPEED_MPS = 8.0
SOURCE_HZ = 50.0
FAULT_S, WELL_S = 1.5, 1.5  # long enough for a stop, and to recover from it
SETTLED_S = 10.0  # after which memory is compared
WITHOUT = "none"

FAULTS = (
    "late", "missing", "duplicated", "reordered", "future", "stale picture", "NaN state",
    "truncated JPEG", "garbage", "wrong type", "slow", "hang", "raises", "NaN plan",
    "infeasible plan", "out of memory", "wall clock jumps", "transport gone", "full disk",
)  # fmt: skip
"""What is injected, in turns of random order. SIGTERM and SIGKILL end a process: not here."""


@dataclass
class Survived:
    """What came out.

    Attributes:
        ticks: with a message.
        skipped: slots without one.
        invalid: messages that no controller could follow.
        raised: exceptions that nobody caught, in words.
        internal: exceptions of the loop's own that a prepared stop answered.
        rungs: fault to how many messages of which rung went out while it lasted, or afterwards.
        reasons: fault to why its worst message was no better.
        memory: resident bytes when it had settled, and at the end.
    """

    ticks: int = 0
    skipped: int = 0
    invalid: int = 0
    raised: list[str] = field(default_factory=list)
    internal: int = 0
    rungs: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)

    @property
    def growth(self) -> float:
        """Of memory, as a share."""
        return self.memory[1] / self.memory[0] - 1 if self.memory[0] else 0.0


class Troubled(Straight):
    """Plans straight on, unless its fault is a policy's."""

    def __init__(self, hz: float) -> None:
        super().__init__(hz, *SIZE)
        self.fault = WITHOUT
        self.well = threading.Event()

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """As the fault wants it."""
        fault = self.fault
        plan = super().plan(history, rng=rng, budget=budget)
        if fault == "raises":
            raise RuntimeError("a policy that raises")
        if fault == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        if fault == "slow":
            time.sleep(2.5 / self.spec.control_hz)
        if fault == "hang":
            self.well.wait(60.0)
        if fault == "NaN plan":
            plan.actions[:] = torch.nan
        if fault == "infeasible plan":
            plan.actions[..., 1:] *= 5
        return plan


class Trouble:
    """Sends pictures and odometry, and gives the node a fault after the other."""

    def __init__(
        self,
        messages: Messages,
        bus: Bus,
        clock: WallClock,
        policy: Troubled,
        recorder: Recorder,
        seed: int,
    ) -> None:
        self.messages, self.bus, self.clock = messages, bus, clock
        self.policy, self.recorder = policy, recorder
        self.random = random.Random(seed)
        self.fault = self.last = WITHOUT
        self.ended = threading.Event()
        self.folder = recorder.folder
        self.full = self.folder.parent / "full"
        self.full.touch()  # a file, in which no folder can be made
        transport = LoopbackTransport(messages, bus)
        self.state = transport.publisher(STATE, "nav_msgs/msg/Odometry")
        self.camera = transport.publisher(CAMERA, "sensor_msgs/msg/CompressedImage")
        self.other = transport.publisher(STATE, "nav_msgs/msg/Path")
        self.jpeg = _jpeg()
        self.stamp = 0
        self.thread = threading.Thread(target=self._run, name="trouble", daemon=True)

    def stop(self) -> None:
        """Send no more."""
        self.ended.set()
        self.thread.join()
        self._begin(WITHOUT)

    def _run(self) -> None:
        began = due = time.monotonic()
        faults: list[str] = []
        while not self.ended.is_set():
            gone = time.monotonic() - began
            turn, into = divmod(gone, FAULT_S + WELL_S)
            wanted = WITHOUT
            if into >= WELL_S:
                while len(faults) <= turn:
                    faults += self.random.sample(FAULTS, len(FAULTS))
                wanted = faults[int(turn)]
            if wanted != self.fault:
                self._begin(wanted)
            try:
                self._send(gone)
            except OSError:
                assert self.bus.down
            due += 1 / SOURCE_HZ
            time.sleep(max(0.0, due - time.monotonic()))

    def _begin(self, fault: str) -> None:
        if fault == WITHOUT:
            self.policy.well.set()
        else:
            self.last = fault
            self.policy.well.clear()
        self.fault = self.policy.fault = fault
        self.bus.down = fault == "transport gone"
        self.clock.wall_offset_ns = 3600 * 10**9 if fault == "wall clock jumps" else 0
        self.recorder.folder = self.full / "none" if fault == "full disk" else self.folder

    def _send(self, gone: float) -> None:
        if self.fault in ("missing", "full disk"):
            return
        now = self.clock.wall_ns()
        stamp = now + {"late": -500_000_000, "future": 1_000_000_000}.get(self.fault, 0)
        point = np.array([SPEED_MPS * gone, 0.0, 0.0, SPEED_MPS])
        if self.fault == "NaN state":
            point[:] = np.nan
        odometry = self.messages.encode(make_odometry(self.messages, stamp, point))
        picture = self.jpeg
        if self.fault == "truncated JPEG":
            picture = picture[: len(picture) // 2]
        if self.fault != "stale picture":
            self.stamp = stamp
        kind = self.messages.type("sensor_msgs/msg/CompressedImage")
        header = self.messages.header(self.stamp, "camera")
        seen = self.messages.encode(kind(header, "jpeg", picture))
        if self.fault == "garbage":
            odometry = seen = b"\x00\x01\x00\x00garbage"
        if self.fault == "wrong type":
            path = self.messages.type("nav_msgs/msg/Path")
            self.other.publish(path(self.messages.header(now, "odom"), []), now)
            return
        self.state.send(odometry, stamp)
        self.camera.send(seen, self.stamp)
        if self.fault == "duplicated":
            self.state.send(odometry, stamp)
            self.camera.send(seen, self.stamp)
        if self.fault == "reordered":
            older = stamp - 100_000_000
            data = self.messages.restamped("nav_msgs/msg/Odometry", odometry, older)
            self.state.send(data, older)


class Judge:
    """Looks at everything that is published; a `Listener` too."""

    def __init__(self, sender: PlanSender, trouble: Trouble, survived: Survived) -> None:
        self.sender, self.trouble, self.survived = sender, trouble, survived
        self.report = sender.report
        self.transition = sender.transition

    def send(self, motion: Motion, stamp_ns: int) -> None:
        """Judge, then send."""
        times, points = motion.times, motion.points
        good = (
            len(times) == len(points) >= 2
            and bool(np.isfinite(times).all() and np.isfinite(points).all())
            and bool((np.diff(times) > 0).all())
        )
        self.survived.ticks += 1
        self.survived.invalid += not good
        self.sender.send(motion, stamp_ns)

    def published(self, published: Published) -> None:
        """Which rung, at which fault, and why."""
        fault, survived = self.trouble.last, self.survived
        survived.rungs[fault][published.rung] += 1
        if published.rung > survived.reasons.get(fault, (0, ""))[0]:
            survived.reasons[fault] = published.rung, published.reason
        if published.rung >= STOP and published.actions[-1, SPEED] != 0:
            survived.invalid += 1

    def received(self, sample: Sample) -> None:
        """Nothing to judge."""

    def faults(self) -> list[str]:
        """None of its own."""
        return []

    def close(self) -> None:
        """Nothing to end."""


def survive(config: VehicleBenchConfig, folder: Path) -> Survived:
    """Run a node for ``fault_seconds`` at ``fault_hz``, with a fault half of the time.

    Args:
        folder: for recordings.
    """
    hz = config.fault_hz
    messages, clock = Messages(), WallClock()
    bus = Bus(clock)
    policy, survived = Troubled(hz), Survived()
    recorder = Recorder(folder / "recordings", messages, seconds=5.0, max_files=20, clock=clock)
    trouble = Trouble(messages, bus, clock, policy, recorder, seed=0)
    period_ms = 1e3 / hz
    deploy = DeployConfig(
        hz=hz, deadline_ms=0.8 * period_ms, epsilon_ms=0.1 * period_ms, hang_s=0.5,
        state=InputConfig(STATE, "nav_msgs/msg/Odometry", 0.3),
        inputs={
            IMAGE: InputConfig(CAMERA, "sensor_msgs/msg/CompressedImage", 0.3),
            EGO: InputConfig(reads="ego_states", shape=[1, 6]),
        },
        plan_hz=PLAN_HZ, waypoints=WAYPOINTS,
    )  # fmt: skip
    transport = LoopbackTransport(messages, bus)
    outputs = {PLAN: "autoware_planning_msgs/msg/Trajectory"}
    judge = Judge(PlanSender(messages, transport, name="bench", outputs=outputs), trouble, survived)
    node = Node(
        lambda: make_loop(deploy, {"full": policy}, {"full": 1e-3}, messages, clock),
        transport, judge, clock, listeners=[BlackBox(recorder), judge], name="bench",
    )  # fmt: skip
    settled: list[int] = []
    wait = min(SETTLED_S, config.fault_seconds / 2)
    timer = threading.Timer(wait, lambda: settled.append(_resident_bytes()))
    with Uncaught(survived.raised):
        trouble.thread.start()
        timer.start()
        try:
            node.run(ticks=round(config.fault_seconds * hz))
        except Exception as error:
            survived.raised.append(f"{type(error).__name__}: {error}")
        finally:
            timer.cancel()
            trouble.stop()
    end = _resident_bytes()
    survived.memory = (settled[0] if settled else end, end)
    if node.loop is not None:
        survived.internal = node.loop.counts["internal errors"]
    survived.skipped = node.schedule.skipped if node.schedule else 0
    return survived


class Uncaught:
    """Collects what threads raise."""

    def __init__(self, into: list[str]) -> None:
        self.into = into

    def __enter__(self) -> None:
        self.before: Callable[..., Any] = threading.excepthook
        threading.excepthook = lambda told: self.into.append(f"{told.thread}: {told.exc_value!r}")

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self.before


def _jpeg() -> np.ndarray[Any, np.dtype[np.uint8]]:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    require("PIL.Image", extra="ros").fromarray(pixels).save(file, "jpeg")
    return np.frombuffer(file.getvalue(), np.uint8)


def _resident_bytes() -> int:
    """Of this process; where there is no ``/proc``, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
