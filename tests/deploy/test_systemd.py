"""What systemd hears, on a real socket."""

import importlib.util
import os
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.systemd import Systemd

spec = importlib.util.spec_from_file_location("node", Path(__file__).with_name("test_node.py"))
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A bound socket, and what it is called in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@fastloop-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + name[1:] if name.startswith("@") else name)
        ear.setblocking(False)
        yield ear, {"NOTIFY_SOCKET": name}


def heard(ear):
    words = []
    while True:
        try:
            words.append(ear.recv(100).decode())
        except BlockingIOError:
            return words


def test_a_run_from_ready_to_stopping(manager):
    ear, environment = manager

    def build():
        time.sleep(0.2)
        return world.loop(node.CONFIG)

    world = node.World(build=build)
    states = set()

    class Told(Systemd):
        def alive(self):
            states.add(world.node.lifecycle.state)

    world.node.systemd = Told(environment)
    seen = []
    world.node.lifecycle.listeners.append(lambda *told: seen.append((told[2], heard(ear))))
    assert world.node.run(ticks=20) == 0
    assert [words for _, words in seen] == [[], [], ["READY=1"], [], ["STOPPING=1"], []]
    assert seen[2][0] == "activating"  # the first thing after it is configured
    assert states >= {"configuring", "activating", "active"}


def test_it_is_ready_when_it_waits_to_be_asked(manager):
    ear, environment = manager
    world = node.World()
    world.node.autostart = False
    world.node.systemd = Systemd(environment)
    world.clock.at(1.0, world.node.finish)
    assert world.node.run() == 0
    assert heard(ear) == ["READY=1", "STOPPING=1"]


def test_what_cannot_be_configured_is_never_ready(manager):
    ear, environment = manager

    def build():
        raise OSError("weights are gone")

    world = node.World(build=build)
    world.node.systemd = Systemd(environment)
    assert world.node.run() == 1
    assert heard(ear) == ["STOPPING=1"]


def test_half_of_the_time_goes_by_between_two(manager):
    ear, environment = manager
    systemd = Systemd(environment | {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())})
    systemd.alive()
    systemd.alive()
    assert heard(ear) == ["WATCHDOG=1"]
    time.sleep(0.21)
    systemd.alive()
    assert heard(ear) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "changes", [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "20", "WATCHDOG_PID": "1"}]
)
def test_who_is_not_asked_does_not_tell_that_it_lives(manager, changes):
    ear, environment = manager
    Systemd(environment | changes).alive()
    assert heard(ear) == []


@pytest.mark.parametrize("where", ["", "/nowhere/at/all", "@nobody-listens"])
def test_a_manager_that_is_not_there_harms_nobody(where):
    systemd = Systemd({"NOTIFY_SOCKET": where, "WATCHDOG_USEC": "10000"})
    systemd.ready()
    systemd.alive()
    systemd.stopping()


def test_a_manager_that_does_not_listen_is_not_waited_for(manager):
    _, environment = manager
    systemd = Systemd(environment)
    for _ in range(1000):  # far more than its buffer holds
        systemd.ready()
