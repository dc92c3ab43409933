"""The services of the lifecycle: what they say, what they do, and what they refuse."""

import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.clock import WallClock
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.services import serve_lifecycle

spec = importlib.util.spec_from_file_location("node", Path(__file__).with_name("test_node.py"))
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)
CONFIG, World = node.CONFIG, node.World

HASHES = {  # of the code that ROS 2 generates
    "ChangeState": "356fe34f0475a43acf54542013af4167b0e729f77ea22ffb045c6ad8e20668e5",
    "GetState": "800a0a5aae599782b02932de0caf563f6dc4e7e94b794eadde075ba2cbef9795",
    "GetAvailableTransitions": "59b7ecefce0982a8a844b9f2c4f14764c1c4543cc55e72924e2aa4adad83e9bc",
}


def test_types_have_the_hashes_of_ros():
    messages = World().messages
    for name, known in HASHES.items():
        assert messages.hash(f"lifecycle_msgs/srv/{name}") == f"RIHS01_{known}"


class Managed(World):
    """A node that waits to be asked. What is asked at a time is asked in the node's own thread."""

    def __init__(self, build=None, autostart=False):
        super().__init__(CONFIG, build)
        self.node.autostart = autostart
        self.asked = []
        serve_lifecycle(self.node.lifecycle, self.node.transport, self.messages, "/node")

    def at(self, t, transition):
        self.clock.at(t, lambda: self.asked.append(self.node.lifecycle.ask(transition)))

    def answers(self):
        return [(one.transition, one.wait(0)) for one in self.asked]

    def call(self, name, *fields):
        kind = f"lifecycle_msgs/srv/{name}"
        request = self.messages.type(kind + "_Request")(*fields)
        snake = "".join("_" + c.lower() if c.isupper() else c for c in name)[1:]
        return self.node.transport.call(f"/node/{snake}", kind, request)

    def change(self, number=0, label=""):
        transition = self.messages.type("lifecycle_msgs/msg/Transition")(number, label)
        return self.call("ChangeState", transition).success

    def states(self):
        return [one.goal_state.label for one in self.transitions]


def test_it_does_what_it_is_asked_in_turn():
    world = Managed()
    for t, transition in enumerate(
        ["configure", "activate", "deactivate", "activate", "deactivate", "cleanup", "configure"]
    ):
        world.at(2.0 + t, transition)
    world.at(9.5, "shutdown")
    assert world.node.run() == 0
    assert all(success for _, success in world.answers())
    assert world.states() == [
        "configuring", "inactive", "activating", "active", "inactive", "activating", "active",
        "inactive", "unconfigured", "configuring", "inactive", "finalized",
    ]  # fmt: skip
    stamps = np.array([p.header.stamp.sec + p.header.stamp.nanosec / 1e9 for p in world.plans])
    stamps -= world.clock.wall_ns() / 1e9 - world.clock.now()
    assert ((stamps > 2.99) & (stamps < 6.2)).all()
    assert not ((stamps > 4.2) & (stamps < 4.99)).any()  # inactive
    first = world.plans[: int((stamps < 4.5).sum())]
    assert first[-1].points[-1].longitudinal_velocity_mps == 0
    # Fresh again at once, and nothing counts as skipped.
    again = world.plans[len(first)]
    assert again.points[-1].longitudinal_velocity_mps == pytest.approx(5.0)


def test_a_pause_skips_no_ticks_and_leaves_no_history():
    world = Managed(autostart=True)
    world.at(3.0, "deactivate")
    world.at(5.0, "activate")
    fresh = []
    world.clock.at(5.6, lambda: fresh.append(world.node.loop.rungs.copy()))
    world.clock.at(5.6, lambda: fresh.append(world.node.schedule.skipped))
    world.at(6.0, "shutdown")
    assert world.node.run() == 0
    rungs, skipped = fresh
    assert skipped == 0
    assert rungs[1] == 0
    assert rungs[2] == 1  # the stop at the end of the first time
    assert rungs[0] == rungs.total() - 1


@pytest.mark.parametrize("transition", ["configure", "activate", "cleanup", "dance", "succeed"])
def test_what_the_state_does_not_allow_is_refused_and_changes_nothing(transition):
    world = Managed(autostart=True)
    world.at(3.0, transition)
    assert world.node.run(ticks=30) == 0
    assert world.answers() == [(transition, False)]
    assert len(world.plans) == 31


def test_while_it_waits_for_a_state_it_can_be_shut_down():
    world = Managed(autostart=True)
    world.silent = True
    world.at(2.0, "deactivate")
    world.at(3.0, "shutdown")
    assert world.node.run() == 0
    assert world.answers() == [("deactivate", False), ("shutdown", True)]
    assert world.states()[-2:] == ["activating", "finalized"]


def test_weights_that_cannot_be_loaded_can_be_tried_again():
    tries = []

    def build():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("weights are gone")
        return world.loop(CONFIG)

    world = Managed(build)
    for t, transition in enumerate(["configure", "activate", "configure", "activate", "shutdown"]):
        world.at(2.0 + t, transition)
    assert world.node.run() == 0
    assert [success for _, success in world.answers()] == [False, False, True, True, True]
    assert any("OSError: weights are gone" in one.message for one in world.health)
    assert world.health[-1].message == "finalized"
    assert len(world.plans) >= 10


def test_the_watchdog_rests_while_it_is_inactive():
    class Watchdog:
        told = ()

        def alive(self):
            return bool(self.told)

        def start(self):
            self.told += ("start",)

        def beat(self, tick, motion):
            if self.told[-1] != "beat":
                self.told += ("beat",)

        def rest(self):
            self.told += ("rest",)

        def close(self, *, takes_over=False):
            self.told += ("close",)

    world = Managed(autostart=True)
    world.node.watchdog = Watchdog()
    world.at(2.0, "deactivate")
    world.at(3.0, "cleanup")
    world.at(4.0, "configure")
    world.at(5.0, "activate")
    world.node.clock.at(6.0, world.node.finish)
    assert world.node.run() == 0
    assert world.node.watchdog.told == ("start", "beat", "rest", "beat", "rest", "close")


@pytest.fixture
def live():
    """A managed node in a thread of its own, in real time."""
    world = Managed()
    world.node.clock = world.bus.clock = world.clock = WallClock()
    ended = threading.Event()

    def speak():
        while not ended.wait(0.02):
            stamp = world.clock.wall_ns()
            point = np.array([5.0 * world.clock.now(), 0.0, 0.0, 5.0])
            world.mouth.publish(make_odometry(world.messages, stamp, point), stamp)

    threads = [threading.Thread(target=speak), threading.Thread(target=world.node.run)]
    for thread in threads:
        thread.start()
    yield world
    world.node.finish()
    ended.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_over_its_services(live):
    def state():
        found = live.call("GetState").current_state
        return found.id, found.label

    def transitions():
        have = live.call("GetAvailableTransitions").available_transitions
        return [(one.transition.id, one.transition.label, one.goal_state.id) for one in have]

    assert state() == (1, "unconfigured")
    assert transitions() == [(1, "configure", 10), (5, "shutdown", 4)]
    ids = {one.id for one in live.call("GetAvailableStates").available_states}
    assert ids == {1, 2, 3, 4, 10, 13, 15}
    assert live.change(3) is False  # activate
    assert live.change(1) is True
    assert state() == (2, "inactive")
    assert transitions() == [(3, "activate", 13), (2, "cleanup", 1), (6, "shutdown", 4)]
    assert live.change(5) is False  # the shutdown of another state
    assert live.change(99) is False
    assert live.change(label="activate") is True
    assert state() == (3, "active")
    assert live.change(3, "deactivate") is True  # the label counts more
    assert live.change(7, "fly") is False
    assert state() == (2, "inactive")
    assert live.change(6) is True
    end = time.monotonic() + 30
    while live.node.lifecycle.state != "finalized":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert live.node.lifecycle.ask("configure").wait(5) is False
