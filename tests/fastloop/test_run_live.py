"""`fastloop run` as a process on the wire: it plans, and is not silent when it is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the wire is zenoh's (extra ros)")
pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.cli import configure
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.names import attach, topic_key
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport
from fastloop.deployment import make_deployment

PATIENCE_S = 120.0


class World:
    """Who connects to the node, tells it where it is, and hears what it says."""

    def __init__(self, endpoint, state):
        self.messages = Messages()
        config = ZenohConfig("/world", listen=(), connect=(endpoint,))
        self.transport = ZenohTransport(self.messages, config)
        self.state = state
        self.health = []
        self.hear("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", self.health)
        self.ended = threading.Event()

    def hear(self, topic, kind, into):
        self.transport.subscribe(
            topic, kind, lambda s: into.append(self.messages.decode(s.type, s.data))
        )

    def speak(self, topic, kind):
        mouth = self.transport.publisher(topic, kind)

        def run():
            while not self.ended.wait(0.02):
                now = time.time_ns()
                mouth.publish(self.state(self.messages, now), now)

        threading.Thread(target=run, daemon=True).start()

    def told(self, words):
        statuses = [one.status[0] for one in list(self.health)]
        return [one for one in statuses if words in one.message]

    def change(self, label):
        """Call the node's service as a client of ROS does; None where nobody is there yet."""
        kind = "lifecycle_msgs/srv/ChangeState"
        transition = self.messages.type("lifecycle_msgs/msg/Transition")(0, label)
        request = self.messages.encode(self.messages.type(kind + "_Request")(transition))
        key = topic_key(0, "/fastloop/change_state", kind, self.messages.hash(kind))
        attachment = attach(1, time.time_ns(), bytes(16))
        got = self.transport._session.get(
            key, payload=request, attachment=attachment, timeout=PATIENCE_S
        )
        for reply in got:
            return self.messages.decode(kind + "_Response", reply.ok.payload.to_bytes()).success
        return None

    def close(self):
        self.ended.set()
        time.sleep(0.05)
        self.transport.close()


def node(endpoint, folder, *words):
    command = [
        sys.executable, "-m", "fastloop.cli", "run", f"run_dir={folder}", "policy.threads=1",
        f"deploy.zenoh.listen=[{endpoint}]", "deploy.zenoh.connect=[]", "deploy.recorder_s=0",
        "deploy.watchdog.hold_s=2", *words,
    ]  # fmt: skip
    return subprocess.Popen(command)


def until(condition, process=None):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        assert process is None or process.poll() is None, "the node ended"
        time.sleep(0.01)


@pytest.fixture
def endpoint():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{free.getsockname()[1]}"


def driving(messages, now):
    return make_odometry(messages, now, np.array([5.0 * time.monotonic(), 0.0, 0.0, 5.0]))


def test_it_is_managed_over_the_wire(endpoint, tmp_path):
    world = World(endpoint, driving)
    plans = []
    world.hear("/planning/trajectory", "autoware_planning_msgs/msg/Trajectory", plans)
    world.speak("/localization/kinematic_state", "nav_msgs/msg/Odometry")
    process = node(endpoint, tmp_path, "deploy.autostart=false")
    try:
        until(lambda: world.change("activate") is False, process)  # not yet
        assert world.change("configure")
        assert not plans
        assert world.change("activate")
        until(lambda: len(plans) >= 5, process)
        assert world.change("deactivate")
        time.sleep(0.2)
        count = len(plans)
        assert plans[-1].points[-1].longitudinal_velocity_mps == 0
        time.sleep(1.0)
        assert len(plans) == count  # nor does the watchdog say anything
        assert world.change("shutdown")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        world.close()
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["rung_0"]["value"] >= 1


def test_the_watchdog_is_heard_by_who_was_connected_to_the_killed_node_only(endpoint, tmp_path):
    world = World(endpoint, driving)
    plans = []
    world.hear("/planning/trajectory", "autoware_planning_msgs/msg/Trajectory", plans)
    world.speak("/localization/kinematic_state", "nav_msgs/msg/Odometry")
    process = node(endpoint, tmp_path)
    try:
        until(lambda: len(plans) >= 5 and world.transport.connected >= 2, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: world.told("the node is gone"))
        before = len(plans)
        until(lambda: len(plans) >= before + 3)
        assert world.told("the node is gone")[0].level == 2
        assert plans[-1].points[-1].longitudinal_velocity_mps == 0
    finally:
        process.kill()
        process.wait()
        world.close()


def test_simulated_time_is_that_on_clock_and_there_is_no_watchdog(endpoint, tmp_path):
    words = [f"deploy.zenoh.listen=[{endpoint}]", "deploy.zenoh.connect=[]"]
    config = configure("run", [*words, "deploy.use_sim_time=true", "deploy.recorder_s=0"])
    running = make_deployment(config, tmp_path).node
    world = World(endpoint, lambda messages, now: clock(messages.time(5 * 10**9)))
    clock = world.messages.type("rosgraph_msgs/msg/Clock")
    try:
        assert running.watchdog is None
        assert running.clock.wall_ns() == 0
        world.speak("/clock", "rosgraph_msgs/msg/Clock")
        until(lambda: running.clock.wall_ns() == 5 * 10**9)
    finally:
        world.close()
        running.transport.close()


def resting(messages, now):
    kind = messages.type("sensor_msgs/msg/JointState")
    places = np.array([0.0, 9.0, 0.01])  # the controller tells more joints, in its own order
    return kind(messages.header(now, ""), ["b", "gripper", "a"], places, 0 * places, 0 * places)


def test_an_arm_gets_the_joints_that_its_policy_plans_until_sigterm(endpoint, tmp_path, arm):
    world = World(endpoint, resting)
    plans = []
    topic = "/joint_trajectory_controller/joint_trajectory"
    world.hear(topic, "trajectory_msgs/msg/JointTrajectory", plans)
    world.speak("/joint_states", "sensor_msgs/msg/JointState")
    process = node(
        endpoint, tmp_path, "deploy=arm", "deploy.joints=[a,b]", f"policy.checkpoint={arm}",
        "policy.sampler.kind=ddim", "policy.sampler.num_inference_steps=2",
        "deploy.watchdog.enabled=false",
    )  # fmt: skip
    try:
        until(lambda: len(plans) >= 10 and world.told("fresh plans"), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        until(lambda: world.told("finalized"))
    finally:
        process.kill()
        process.wait()
        world.close()
    assert all(plan.joint_names == ["a", "b"] for plan in plans)
    # On a busy machine some are stops, in smaller steps.
    fresh = [plan for plan in plans if plan.points[1].time_from_start.nanosec == 100_000_000]
    places = np.array([point.positions for point in fresh[0].points])
    assert np.abs(places).max() <= 0.021  # what the policy plans
    assert np.ptp(places[:, 0]) > 0
    last = plans[-1].points
    assert np.allclose(last[-1].positions, last[-2].positions, atol=1e-2)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["rung_0"]["value"] >= 1
