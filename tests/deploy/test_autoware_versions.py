"""A node that publishes Autoware's old trajectory, and subscribers of both definitions."""

import importlib.util
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the wire is zenoh's (extra ros)")
pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.clock import WallClock
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.messages import Messages
from fastloop.deploy.node import Node
from fastloop.deploy.outputs import PlanSender
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

spec = importlib.util.spec_from_file_location("node", Path(__file__).with_name("test_node.py"))
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)

TRAJECTORY = "autoware_planning_msgs/msg/Trajectory"
PATIENCE_S = 60  # on a machine that is busy with something else


def test_the_old_definition_is_heard_by_who_has_it_and_named_to_who_has_not():
    fixed, unbounded = Messages("fixed"), Messages()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    transport = ZenohTransport(fixed, ZenohConfig("/planner", listen=(endpoint,), connect=()))
    there = {"listen": (), "connect": (endpoint,)}
    old = ZenohTransport(fixed, ZenohConfig("/old", **there))
    new = ZenohTransport(unbounded, ZenohConfig("/new", **there))
    plans, wrong, faults = [], [], []
    old.subscribe("/plan", TRAJECTORY, lambda s: plans.append(fixed.decode(s.type, s.data)))
    new.subscribe("/plan", TRAJECTORY, wrong.append)
    new.subscribe(
        "/diagnostics",
        "diagnostic_msgs/msg/DiagnosticArray",
        lambda s: faults.extend(
            pair.value
            for pair in unbounded.decode(s.type, s.data).status[0].values
            if pair.key == "faults" and pair.value
        ),
    )
    clock = WallClock()
    world = node.World()
    world.messages, world.clock = fixed, clock
    config = replace(node.CONFIG, hz=2.0)
    running = Node(
        lambda: world.loop(config), transport,
        PlanSender(fixed, transport, name="node", outputs=node.PLAN), clock, quiet_gc=False,
    )  # fmt: skip
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        mouth = old.publisher("/odometry", node.ODOMETRY)
        end = time.monotonic() + PATIENCE_S
        while len(plans) < 3 or not faults or not (told := new.faults()):
            assert time.monotonic() < end
            now = clock.wall_ns()
            point = np.array([5.0 * clock.now(), 0.0, 0.0, 5.0])
            mouth.publish(make_odometry(fixed, now, point), now)
            time.sleep(0.02)
    finally:
        running.finish()
        thread.join(PATIENCE_S)
        for one in (old, new):
            one.close()
    first = plans[1].points
    assert len(first) == 10_000
    assert first[0].longitudinal_velocity_mps == pytest.approx(5.0)
    assert first[-1] == first[-2]  # there is no place for their number
    seconds = [point.time_from_start.sec for point in first]
    assert seconds == sorted(seconds)
    assert wrong == []
    hashes = [fixed.hash(TRAJECTORY), unbounded.hash(TRAJECTORY)]
    assert hashes[0] != hashes[1]
    assert all(known in faults[-1] for known in (*hashes, "/plan: /new has"))
    assert all(known in told[0] for known in (*hashes, "/plan: /planner has"))
