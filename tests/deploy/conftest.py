"""A machine on a table: the loop with a virtual clock, a world that follows it, and faults."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fastloop.deploy.anytime import Anytime
from fastloop.deploy.arm import Arm
from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.gate import ArmLimits
from fastloop.deploy.inputs import Inputs, Topic
from fastloop.deploy.ladder import STOP, Ladder
from fastloop.deploy.loop import Loop, LoopConfig
from fastloop.deploy.motion import SPEED, Motion, State
from fastloop.deploy.schedule import Schedule
from fastloop.deploy.transport.base import Sample
from fastloop.deploy.vehicle import Vehicle
from fastloop.deploy.worker import InlineWorker, Observed, Planned

STATE, CAMERA = "/state", "/camera"
PLAN_HZ, WAYPOINTS = 4.0, 20


class Rig:
    """The loop in a world of its own. Faults are attributes that a test sets between ticks.

    The machine does what is published. A state and a picture come 5 ms before every tick.
    """

    def __init__(self, arm: bool = False, variants: dict[str, float] | None = None, **config):
        self.arm = arm
        self.clock = VirtualClock()
        self.config = LoopConfig(**config)
        self.latency: float | Callable[[str], float] = 0.01
        self.error: BaseException | None = None
        self.answer: Callable[[np.ndarray], np.ndarray] | None = None
        self.deaf = False  # transport gone
        self.silent: set[str] = set()  # topics that send nothing
        self.delay_s = {STATE: 0.0, CAMERA: 0.0}  # on the way, by stamp
        self.garbage: set[str] = set()
        self.pushed = 0.0  # how far the machine is moved from where it should be, once
        self.stall_s = 0.0  # of the loop itself, once
        self.point = np.zeros(2) if arm else np.array([0.0, 0.0, 0.0, 8.0, 0.0])
        self.jobs: list = []
        self.inputs = Inputs(
            [
                Topic(STATE, "state", self._state, max_age_s=0.3, eager=True),
                Topic(CAMERA, "image", self._picture, max_age_s=0.3),
            ],
            self.clock,
            state=STATE,
        )
        self.body = (
            Arm(2, ArmLimits(low=(-2.0, -2.0), high=(2.0, 2.0))) if arm else Vehicle(PLAN_HZ)
        )
        self.worker = InlineWorker(lambda: self._plan, self.clock, self._latency)
        self.loop = Loop(
            self.inputs,
            self.worker,
            Ladder(self.body, period_s=self.config.period_s),
            Anytime(variants or {"full": 0.02}),
            self.clock,
            self.config,
        )
        self.schedule: Schedule | None = None

    def _state(self, sample: Sample, time: float) -> State:
        point = np.frombuffer(sample.data)
        if not np.isfinite(point).all():
            raise ValueError("not finite")
        return State(time, point, np.zeros(2 if self.arm else 1))

    def _picture(self, sample: Sample, time: float) -> bytes:
        if sample.data != b"picture":
            raise ValueError("truncated JPEG")
        return sample.data

    def _latency(self, job) -> float:
        return self.latency(job.variant) if callable(self.latency) else self.latency

    def _plan(self, job) -> Planned:
        self.jobs.append(job)
        seen = [event for event in job.events if isinstance(event, Observed)][-1]
        assert seen.snapshot.held[CAMERA].value == b"picture"
        if self.error is not None:
            raise self.error
        actions = self._chunk(job.state) if self.arm else self._waypoints(job.state)
        return Planned(actions if self.answer is None else self.answer(actions))

    def _waypoints(self, state: State) -> np.ndarray:
        """On with at most 0.5 m/s^2 toward 8 m/s."""
        t = np.arange(1, WAYPOINTS + 1) / PLAN_HZ
        speed = max(0.0, float(state.point[SPEED]))
        pull = 0.5 if speed < 7.9 else 0.0
        until = np.minimum(t, (8.0 - speed) / pull if pull else 0.0)
        x = speed * t + pull * until * (t - until / 2)
        return np.concatenate([[0.0], np.column_stack([x, 0 * x]).ravel()])[None]

    def _chunk(self, state: State) -> np.ndarray:
        return np.clip(state.point + 0.02 * np.sin(np.arange(16))[:, None], -1, 1)

    def send(self, topic: str, data: bytes | None = None, *, stamp_ns: int | None = None) -> str:
        """A message that arrives now."""
        if data is None:
            data = b"picture" if topic == CAMERA else self._measured().tobytes()
            if topic in self.garbage:
                data = b"pic" if topic == CAMERA else np.full(len(self.point), np.nan).tobytes()
        now = self.clock.wall_ns()
        if stamp_ns is None:
            stamp_ns = now - round(self.delay_s[topic] * 1e9)
        kind = "image" if topic == CAMERA else "state"
        return self.inputs.offer(Sample(topic, kind, data, stamp_ns, now))

    def _measured(self) -> np.ndarray:
        self.point = self.point.copy()
        self.point[0] += self.pushed
        self.pushed = 0.0
        if self.arm:
            self.point = np.clip(self.point, -0.9, 0.9)
        return self.point

    def start(self):
        """Up to the first tick."""
        for topic in (STATE, CAMERA):
            self.send(topic)
        assert self.loop.ready() == ""
        self.schedule = Schedule(self.clock.now() + 0.010, self.config.period_s)

    def tick(self):
        """One tick; what was published."""
        if self.schedule is None:
            self.start()
        slot = self.schedule.following(self.clock.now())
        t = self.schedule.time(slot)
        self.clock.sleep_until(t - 0.005)
        if not self.deaf:
            for topic in (STATE, CAMERA):
                if topic not in self.silent:
                    self.send(topic)
        self.clock.sleep_until(t)
        if self.stall_s:
            self.clock.advance(self.stall_s)
            self.stall_s = 0.0
        published = self.loop.tick(slot, t)
        check(published)
        motion = Motion(t + published.times, published.actions)
        ahead = self.schedule.time(slot + 1) - 0.005
        self.point = motion.at(max(ahead, t))
        self.loop.prepare(self.schedule.time(slot + 1))
        return published

    def ticks(self, count: int):
        """Several; what was published."""
        return [self.tick() for _ in range(count)]


def check(published):
    """A message that a controller can follow."""
    times, actions = published.times, published.actions
    assert len(times) == len(actions) >= 2
    assert np.isfinite(times).all()
    assert np.isfinite(actions).all()
    assert times[0] == 0
    assert (np.diff(times) > 0).all()
    assert published.rung in range(4)
    assert bool(published.reason) == (published.rung > 0)
    if published.rung >= STOP:
        if actions.shape[1] == 5:
            assert actions[-1, SPEED] == 0
        else:
            assert np.abs(actions[-1] - actions[-2]).max() < 0.05
    assert math.isfinite(published.stamp_ns)


@pytest.fixture
def rig():
    """Makes a `Rig`."""
    return Rig


@pytest.fixture
def valid():
    """The check of a message."""
    return check
