"""The node in a process of its own: it loads, waits, plans, and ends when it is told to."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.assembly import make_loop
from fastloop.deploy.clock import ToldClock, VirtualClock
from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.messages import Messages
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport
from fastloop.policies.driving.planners import make_planner
from fastloop.policies.driving.whole_plans import WholePlans, waypoint_env

PLAN = {"/plan": "autoware_planning_msgs/msg/Trajectory"}
ODOMETRY = "nav_msgs/msg/Odometry"
CONFIG = DeployConfig(
    state=InputConfig("/odometry", ODOMETRY, 0.3),
    inputs={"observation.ego_states": InputConfig(reads="ego_states", shape=[1, 6])},
)


class World:
    """A node on a bus in virtual time, and a vehicle that goes straight on at 5 m/s."""

    def __init__(self, config=CONFIG, build=None):
        self.clock = VirtualClock()
        self.bus = Bus(self.clock)
        self.messages = Messages()
        self.plans, self.health = [], []
        ear = LoopbackTransport(self.messages, self.bus)
        ear.subscribe("/plan", PLAN["/plan"], lambda s: self.plans.append(self.read(s)))
        ear.subscribe(
            "/diagnostics",
            "diagnostic_msgs/msg/DiagnosticArray",
            lambda s: self.health.append(self.read(s).status[0]),
        )
        self.transitions = []
        ear.subscribe(
            "/node/transition_event",
            "lifecycle_msgs/msg/TransitionEvent",
            lambda s: self.transitions.append(self.read(s)),
        )
        self.mouth = ear.publisher("/odometry", ODOMETRY)
        self.silent = False
        transport = LoopbackTransport(self.messages, self.bus)
        sender = PlanSender(self.messages, transport, name="node", outputs=PLAN)
        build = build or (lambda: self.loop(config))
        self.node = Node(build, transport, sender, self.clock, name="node", quiet_gc=False)
        self.speak()

    def read(self, sample):
        return self.messages.decode(sample.type, sample.data)

    def loop(self, config):
        from fastloop.deploy.assembly import env_of

        env = env_of(config)
        policy = WholePlans(make_planner("constant_velocity", env=waypoint_env(env)), env)
        return make_loop(config, {"full": policy}, {"full": 1e-3}, self.messages, self.clock)

    def speak(self):
        now = self.clock.now()
        if not self.silent and now > 1.0:
            stamp = self.clock.wall_ns()
            odometry = make_odometry(self.messages, stamp, np.array([5.0 * now, 0.0, 0.0, 5.0]))
            self.mouth.publish(odometry, stamp)
        self.clock.at(now + 0.02, self.speak)


def test_it_waits_for_a_state_then_publishes_every_tick():
    world = World()
    assert world.node.run(ticks=20) == 0
    assert len(world.plans) == 21  # the last one ends at rest
    assert world.plans[-1].points[-1].longitudinal_velocity_mps == 0
    assert world.plans[3].points[0].longitudinal_velocity_mps == pytest.approx(5.0)
    assert world.plans[3].header.frame_id == "odom"
    messages = [one.message for one in world.health]
    assert "no message on /odometry yet" in messages
    assert "fresh plans" in messages
    assert messages[-1] == "finalized"


def test_every_transition_is_told_with_the_ids_of_ros():
    world = World()
    world.node.run(ticks=2)
    told = [(one.transition.id, one.start_state.id, one.goal_state.id) for one in world.transitions]
    assert told == [(1, 1, 10), (10, 10, 2), (3, 2, 13), (30, 13, 3), (4, 3, 2), (6, 2, 4)]
    labels = [one.goal_state.label for one in world.transitions]
    assert labels == [
        "configuring", "inactive", "activating", "active", "inactive", "finalized",
    ]  # fmt: skip
    assert [one.transition.label for one in world.transitions][:2] == [
        "configure", "transition_success",
    ]  # fmt: skip
    stamps = [one.timestamp for one in world.transitions]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[3] > 0.1e9


def test_a_transport_that_is_down_while_it_loads_is_no_reason_to_give_up():
    world = World()
    world.bus.down = True
    world.clock.at(0.5, lambda: setattr(world.bus, "down", False))
    assert world.node.run(ticks=3) == 0
    assert len(world.plans) == 4
    assert world.node.unsent > 0


def test_time_on_clock_is_the_time_of_the_loop():
    """At five times the speed, and with a pause in which nothing is published."""
    clock = ToldClock()
    world = World()
    world.node.clock = world.bus.clock = world.clock = clock
    ended = threading.Event()
    paused = []

    def drive():
        sim = 50 * 10**9
        while not ended.is_set():
            sim += 20_000_000
            clock.tell(sim)
            point = np.array([sim / 2e8, 0.0, 0.0, 5.0])
            world.mouth.publish(make_odometry(world.messages, sim, point), sim)
            time.sleep(0.004)
            if not paused and len(world.plans) >= 10:
                time.sleep(0.1)
                paused.append(len(world.plans))
                time.sleep(0.5)
                paused.append(len(world.plans))

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        assert world.node.run(ticks=30) == 0
    finally:
        ended.set()
        driver.join()
    stamps = [plan.header.stamp.sec * 10**9 + plan.header.stamp.nanosec for plan in world.plans]
    assert stamps[0] > 50 * 10**9
    assert np.allclose(np.diff(stamps[:-1]) % 10**8, 0, atol=1e3)  # where it was slow, it skipped
    assert paused[0] == paused[1]


def test_stamps_are_a_period_apart():
    world = World()
    world.node.run(ticks=10)
    stamps = [plan.header.stamp.sec * 10**9 + plan.header.stamp.nanosec for plan in world.plans]
    assert np.allclose(np.diff(stamps[:10]), 1e8, atol=1e3)


def test_weights_that_cannot_be_loaded_are_told_with_their_own_words():
    def build():
        raise OSError("weights are gone")

    world = World(build=build)
    assert world.node.run() == 1
    assert world.node.lifecycle.state == "finalized"
    assert any("OSError: weights are gone" in one.message for one in world.health)
    assert world.plans == []


def test_a_loop_whose_watchdog_does_not_start_leaves_nothing_behind():
    class Watchdog:
        def alive(self):
            return False

        def start(self):
            raise OSError("no process for the watchdog")

        def close(self, takes_over):
            pass

    world = World()
    build, closed = world.node.build, []

    def watched():
        loop = build()
        loop.worker.close = lambda: closed.append(loop)
        return loop

    world.node.build, world.node.watchdog = watched, Watchdog()
    assert world.node.run() == 1
    assert any("no process for the watchdog" in one.message for one in world.health)
    assert world.node.loop is None
    assert len(closed) == 1


def test_a_rung_that_changes_is_told_at_once():
    world = World()
    world.clock.at(2.0, lambda: setattr(world, "silent", True))
    world.node.run(ticks=40)
    told = [one.message for one in world.health]
    assert any(message.startswith("rung 1: /odometry is") for message in told)
    assert any(message.startswith("rung 2: /odometry is") for message in told)
    values = {pair.key: pair.value for pair in world.health[-1].values}
    assert int(values["rung_2"]) > 0
    assert values["state"] == "finalized"


def test_a_transport_that_is_down_for_a_while_silences_nothing_for_good():
    world = World()
    world.clock.at(2.0, lambda: setattr(world.bus, "down", True))
    world.clock.at(2.5, lambda: setattr(world.bus, "down", False))

    def speak(old=world.speak):
        if not world.bus.down:
            old()
        else:
            world.clock.at(world.clock.now() + 0.02, world.speak)

    world.speak = speak
    assert world.node.run(ticks=40) == 0
    assert world.node.unsent >= 4
    assert world.node.last.rung in (0, 2)  # the stop at the end
    assert world.node.loop.rungs.total() == 41


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"body": "boat"}, "have: vehicle, arm"),
        ({"limits": {"sped": 1.0}}, "unknown limits .*have: speed"),
        ({"chunking": "ensemble"}, "have: receding"),
        ({"inputs": {}}, "the policy reads .*which no topic gives"),
        ({"deadline_ms": 5.0}, "epsilon_s < deadline_s"),
        ({"plan_every": 11}, r"11 ticks, 1\.1 s, and may be 1 s old"),
    ],
)
def test_what_does_not_fit_is_said(changes, words):
    import dataclasses

    world = World()
    good = world.loop(CONFIG).worker._make_planner().variants["full"]
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=words):
        make_loop(config, {"full": good}, {"full": 1e-3}, world.messages, world.clock)


PROCESS = """
    import sys, threading, time
    import numpy as np
    sys.path.insert(0, {here!r})
    import test_node as t
    from fastloop.deploy.clock import WallClock

    world = t.World()
    world.node.clock = world.bus.clock = world.clock = WallClock()
    sent = world.node.sender.send
    def send(motion, stamp):
        print(len(motion.times), motion.points[-1, 3], flush=True)
        sent(motion, stamp)
    world.node.sender.send = send
    def speak():
        while True:
            stamp = world.clock.wall_ns()
            x = 5.0 * world.clock.now()
            odometry = t.make_odometry(world.messages, stamp, np.array([x, 0.0, 0.0, 5.0]))
            world.mouth.publish(odometry, stamp)
            time.sleep(0.02)
    threading.Thread(target=speak, daemon=True).start()
    sys.exit(world.node.run())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_a_last_stop(number, code):
    program = textwrap.dedent(PROCESS.format(here=os.path.dirname(__file__)))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(number)
        began = time.monotonic()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert time.monotonic() - began < 10  # 2 s where nothing else runs
        assert out.splitlines()[-1].endswith(" 0.0")
    finally:
        process.kill()
