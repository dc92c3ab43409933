"""The watchdog takes over when its node is killed, is stopped for a while, or never when told."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from fastloop.deploy import watchdog
from fastloop.deploy.motion import Motion

PERIOD = 0.1
NODE = """
    import sys, time
    import numpy as np
    from fastloop.deploy.motion import Motion
    from fastloop.deploy.watchdog import Watchdog

    settings = {
        "zenoh": {"node": "/dog", "connect": [sys.argv[1]]}, "autoware": "unbounded",
        "name": "node", "outputs": {"/plan": "nav_msgs/msg/Path"},
    }
    dog = Watchdog(0.1, settings, hold_s=5.0)
    dog.start()
    print("started", flush=True)
    for tick in range(10**9):
        times = time.monotonic() + np.arange(5) * 0.5
        points = np.column_stack([times * 0 + tick, *np.zeros((4, 5))])
        dog.beat(tick, Motion(times, points))
        print("beat", flush=True)
        time.sleep(0.1)
"""


@pytest.fixture
def wire():
    """Where plans and diagnostics arrive: (endpoint, plans, alarms), each with its moment."""
    pytest.importorskip("zenoh", reason="the wire is zenoh's (extra ros)")
    from fastloop.deploy.messages import Messages
    from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    messages = Messages()
    transport = ZenohTransport(messages, ZenohConfig(node="/ear", listen=(endpoint,), connect=()))
    plans, alarms = [], []
    transport.subscribe(
        "/plan", "nav_msgs/msg/Path", lambda sample: plans.append((time.monotonic(), sample))
    )
    transport.subscribe(
        "/diagnostics",
        "diagnostic_msgs/msg/DiagnosticArray",
        lambda sample: alarms.append(messages.decode(sample.type, sample.data).status[0]),
    )
    yield endpoint, plans, alarms
    transport.close()


@pytest.fixture
def node(wire):
    """A small process that beats; (process, plans, alarms)."""
    endpoint, plans, alarms = wire
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NODE), endpoint], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    for _ in range(5):
        process.stdout.readline()
    yield process, plans, alarms
    process.kill()
    process.wait()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_it_takes_over_from_a_node_that_is_killed(node):
    process, plans, alarms = node
    assert plans == []
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: len(plans) >= 3)
    assert len(alarms) >= 1
    assert alarms[0].level == 2
    assert "the node is gone" in alarms[0].message


def test_it_takes_over_from_a_node_that_is_silent_and_gives_back(node):
    process, plans, alarms = node
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: len(plans) >= 3)
    assert "the node is silent" in alarms[0].message
    os.kill(process.pid, signal.SIGCONT)
    for _ in range(5):
        process.stdout.readline()
    before = len(plans)
    for _ in range(5):
        process.stdout.readline()
    assert len(plans) - before <= 1  # one may have been under way


class Recorded:
    """A sender that remembers."""

    def __init__(self, failing=False):
        self.sent, self.alarms, self.failing = [], [], failing

    def send(self, motion, stamp_ns):
        if self.failing:
            raise OSError("transport gone")
        self.sent.append((time.monotonic(), motion))

    def alarm(self, words, stamp_ns):
        self.alarms.append(words)


def guarded(sender, hold_s=0.3):
    """A `Watchdog` whose process is a thread; (dog, thread, exit codes)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dog = watchdog.Watchdog(0.02, {})
    dog._socket = ours
    codes = []
    told = {"period_s": 0.02, "silent_periods": 3, "hold_s": hold_s}
    thread = threading.Thread(target=lambda: codes.append(watchdog.guard(theirs, sender, told)))
    thread.start()
    return dog, thread, codes


MOTION = Motion(np.arange(3.0), np.arange(15.0).reshape(3, 5))


def test_a_goodbye_ends_it_without_a_word():
    sender = Recorded()
    dog, thread, codes = guarded(sender)
    dog.beat(0, MOTION)
    dog.close()
    thread.join(5)
    assert codes == [0]
    assert sender.sent == []


def test_rest_is_not_silence():
    sender = Recorded()
    dog, thread, _ = guarded(sender)
    dog.beat(0, MOTION)
    dog.rest()
    time.sleep(0.2)
    dog.close()
    thread.join(5)
    assert sender.sent == []


@pytest.mark.parametrize("failing", [False, True])
def test_it_goes_on_for_a_while_after_a_node_that_is_gone(failing):
    sender = Recorded(failing)
    dog, thread, codes = guarded(sender)
    dog.beat(0, MOTION)
    dog._socket.close()
    thread.join(5)
    assert codes == [3]
    if not failing:
        assert len(sender.sent) > 3
        assert np.array_equal(sender.sent[-1][1].points[-1], MOTION.points[-1])


def test_a_beat_never_waits_for_a_process_that_is_stuck():
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    dog = watchdog.Watchdog(0.1, {})
    dog._socket = ours
    for tick in range(5000):
        dog.beat(tick, MOTION)
    assert dog.dropped > 0


def test_one_that_does_not_answer_is_ended(monkeypatch):
    """Else it would count as alive, and nobody would beat it."""
    never = [sys.executable, "-c", "import time; time.sleep(60)"]
    start = subprocess.Popen
    monkeypatch.setattr(
        watchdog.subprocess, "Popen", lambda command, **settings: start(never, **settings)
    )
    dog = watchdog.Watchdog(0.1, {})
    with pytest.raises(OSError, match=r"not there after 0\.05 s"):
        dog.start(timeout_s=0.05)
    assert not dog.alive()
