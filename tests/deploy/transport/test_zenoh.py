"""Sessions that meet over TCP on this computer, in one process and in two."""

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

from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import LATCHED, QoS
from fastloop.deploy.transport.names import attach, read_attachment
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport, beside, numbered

zenoh = pytest.importorskip("zenoh", reason="the transport is of it (extra ros)")

STRING = "std_msgs/msg/String"
PATIENCE_S = 30  # on a machine that is busy with something else


@pytest.fixture(scope="module")
def messages():
    return Messages()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.01)


@pytest.fixture
def opened(messages):
    """Opens transports, the first of which listens where the others connect."""
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    all_of_them = []

    def open_one(kind=None, **changes):
        first = not all_of_them
        told = {
            "node": f"/node{len(all_of_them)}",
            "listen": (endpoint if first else "tcp/127.0.0.1:0",),
            "connect": () if first else (endpoint,),
        }
        all_of_them.append(ZenohTransport(kind or messages, ZenohConfig(**(told | changes))))
        return all_of_them[-1]

    yield open_one
    for transport in all_of_them:
        transport.close()


def send_until_heard(publisher, message, got):
    """Discovery takes a moment, in which messages are lost."""
    before = len(got)

    def heard():
        publisher.publish(message, 5)
        return len(got) > before

    until(heard, "a message")


def test_a_message_arrives_with_its_stamp(opened, messages):
    here, there = opened(), opened()
    got = []
    here.subscribe("/chatter", STRING, got.append)
    publisher = there.publisher("/chatter", STRING)
    send_until_heard(publisher, messages.type(STRING)("hello"), got)
    sample = got[0]
    assert (sample.topic, sample.type, sample.stamp_ns) == ("/chatter", STRING, 5)
    assert abs(time.time_ns() - sample.received_ns) < PATIENCE_S * 1e9
    assert messages.decode(STRING, sample.data).data == "hello"
    assert here.connected == there.connected == 1


def test_the_wire_is_that_of_rmw_zenoh(opened, messages):
    """Seen by, and sent from, a plain session that knows nothing of this package."""
    ours = opened()
    settings = zenoh.Config.from_json5(
        json.dumps({"mode": "peer", "scouting": {"multicast": {"enabled": False}}})
    )
    settings.insert_json5("connect/endpoints", json.dumps(ours.config.listen))
    key = (
        "0/chatter/std_msgs::msg::dds_::String_/"
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    )
    payload = b"\0\1\0\0" + b"\6\0\0\0hello\0"
    with zenoh.open(settings) as plain:
        sent, tokens, got = [], [], []
        plain.declare_subscriber(key, sent.append)
        plain.liveliness().declare_subscriber("@ros2_lv/**", tokens.append, history=True)
        publisher = ours.publisher("/chatter", STRING)
        send_until_heard(publisher, messages.type(STRING)("hello"), sent)
        assert sent[0].payload.to_bytes()[: len(payload)] == payload
        assert str(sent[0].encoding) == "application/cdr"
        number, stamp, length = (
            int.from_bytes(sent[0].attachment.to_bytes()[part], "little")
            for part in (slice(8), slice(8, 16), slice(16, 17))
        )
        assert number >= 1
        assert (stamp, length) == (5, 16)
        until(lambda: len(tokens) >= 2, "the tokens of node and publisher")
        words = sorted(str(token.key_expr).split("/")[5] for token in tokens)
        assert words == ["MP", "NN"]

        ours.subscribe("/chatter", STRING, got.append)

        def heard():
            plain.put(key, payload, attachment=attach(1, 7, bytes(16)))
            return bool(got)

        until(heard, "a plain session's message")
        assert got[0].stamp_ns == 7
        assert messages.decode(STRING, got[0].data).data == "hello"
        count = len(got)
        plain.put(key, payload)
        until(lambda: len(got) > count and got[-1].stamp_ns is None, "a message without a stamp")


def test_a_service_is_that_of_rmw_zenoh(opened, messages):
    """Called by a plain session, as a client of ROS calls."""
    ours = opened()
    settings = zenoh.Config.from_json5(
        json.dumps({"mode": "peer", "scouting": {"multicast": {"enabled": False}}})
    )
    settings.insert_json5("connect/endpoints", json.dumps(ours.config.listen))
    kind, asked = "lifecycle_msgs/srv/ChangeState", []

    def answer(request):
        asked.append(request.transition.label)
        if request.transition.label == "raise":
            raise RuntimeError("no such thing")
        return messages.type(kind + "_Response")(request.transition.id == 3)

    ours.serve("/node/change_state", kind, answer)
    key = (
        "0/node/change_state/lifecycle_msgs::srv::dds_::ChangeState_/"
        "RIHS01_356fe34f0475a43acf54542013af4167b0e729f77ea22ffb045c6ad8e20668e5"
    )

    def request(number, label):
        transition = messages.type("lifecycle_msgs/msg/Transition")(number, label)
        return messages.encode(messages.type(kind + "_Request")(transition))

    with zenoh.open(settings) as plain:

        def call(payload, attachment=None):
            found = plain.get(
                key, payload=payload, attachment=attachment, timeout=PATIENCE_S,
                target=zenoh.QueryTarget.ALL_COMPLETE,
                consolidation=zenoh.ConsolidationMode.NONE,
            )  # fmt: skip
            return [reply.ok for reply in found]

        gid = bytes(range(16))
        until(lambda: call(request(3, ""), attach(7, 1, gid)), "a response")
        began = time.time_ns()
        (reply,) = call(request(3, "activate"), attach(8, 1, gid))
        assert str(reply.key_expr) == key
        assert reply.payload.to_bytes() == b"\0\1\0\0" + b"\1"
        number, stamp, known = read_attachment(reply.attachment.to_bytes())
        assert (number, known) == (8, gid)
        assert began <= stamp <= time.time_ns()
        (reply,) = call(request(2, "cleanup"))  # of who says nothing of itself
        assert reply.payload.to_bytes()[4:] == b"\0"
        assert call(request(3, "raise"), attach(9, 1, gid)) == []
        assert call(b"garbage", attach(10, 1, gid)) == []
        assert asked[-3:] == ["activate", "cleanup", "raise"]
        (fault,) = ours.faults()
        assert "/node/change_state" in fault
        assert call(request(3, "activate"), attach(11, 1, gid))  # and it goes on
        tokens = [str(one.ok.key_expr) for one in plain.liveliness().get("@ros2_lv/**")]
        (token,) = [one.split("/") for one in tokens if "/SS/" in one]
        assert token[6:10] == ["%", "%", "node0", "%node%change_state"]
        assert "/".join(token[10:12]) == key.split("change_state/")[1]


def test_latecomers_get_what_was_kept(opened, messages):
    here, there = opened(), opened()
    publisher = here.publisher("/info", STRING, LATCHED)
    for word in ("old", "new"):
        publisher.publish(messages.type(STRING)(word), 1)
    got = []
    there.subscribe("/info", STRING, got.append, LATCHED)
    until(lambda: got, "the message that was kept")
    assert messages.decode(STRING, got[0].data).data == "new"


def test_a_slow_reader_finds_the_newest(opened, messages):
    here, there = opened(), opened()
    began, go_on, got = threading.Event(), threading.Event(), []

    def slow(sample):
        got.append(sample.stamp_ns)
        began.set()
        go_on.wait(PATIENCE_S)

    here.subscribe("/chatter", STRING, slow, QoS(depth=2))
    fast = []
    here.subscribe("/chatter", STRING, fast.append, QoS(depth=1000))
    publisher = there.publisher("/chatter", STRING, QoS(reliable=True))
    message = messages.type(STRING)("x")
    send_until_heard(publisher, message, fast)
    assert began.wait(PATIENCE_S)
    for stamp in range(100, 150):
        publisher.publish(message, stamp)
        time.sleep(0.002)  # a burst is lost in part where the machine is busy
    until(lambda: fast[-1].stamp_ns == 149, "the last message")
    go_on.set()
    until(lambda: got[-1] == 149, "the newest message")
    assert got[1:] == [148, 149]


def test_another_version_of_a_type_is_a_fault_by_name(opened, messages):
    trajectory = "autoware_planning_msgs/msg/Trajectory"
    here, there = opened(), opened()
    there.messages = Hashed(messages)
    here.subscribe("/plan", trajectory, lambda sample: None)
    assert here.faults() == []
    there.publisher("/plan", trajectory)
    until(here.faults, "the fault")
    (fault,) = here.faults()
    assert fault.startswith("/plan: /node1 has autoware_planning_msgs/msg/Trajectory with RIHS01_0")
    there.close()
    until(lambda: not here.faults(), "the fault to go")


class Hashed(Messages):
    """Messages whose types have another hash."""

    def __init__(self, messages):
        vars(self).update(vars(messages))

    def hash(self, name):
        return "RIHS01_0"


def test_a_callback_that_fails_is_told_of_and_called_again(opened, messages):
    here, there = opened(), opened()
    got = []

    def failing(sample):
        got.append(sample)
        raise RuntimeError("of the one that subscribed")

    here.subscribe("/chatter", STRING, failing)
    publisher = there.publisher("/chatter", STRING)
    for _ in range(2):
        send_until_heard(publisher, messages.type(STRING)("x"), got)
    assert "/chatter: RuntimeError('of the one that subscribed')" in here.faults()[0]


def test_gone_and_back(opened, messages):
    here, there = opened(), opened()
    got = []
    there.subscribe("/chatter", STRING, got.append)
    message = messages.type(STRING)("x")
    send_until_heard(here.publisher("/chatter", STRING), message, got)
    here.close()
    until(lambda: there.connected == 0, "the link to go")
    again = ZenohTransport(messages, here.config)
    try:
        send_until_heard(again.publisher("/chatter", STRING), message, got)
    finally:
        again.close()


def test_nobody_there_is_no_error(messages):
    lonely = ZenohTransport(messages, ZenohConfig(connect=(f"tcp/127.0.0.1:{free_port()}",)))
    lonely.publisher("/chatter", STRING).publish(messages.type(STRING)("x"), 0)
    assert lonely.connected == 0
    lonely.close()


def test_once_closed_sending_is_an_error(opened, messages):
    here = opened()
    publisher = here.publisher("/chatter", STRING)
    here.subscribe("/chatter", STRING, lambda sample: None)
    here.close()
    here.close()
    with pytest.raises(OSError, match="/chatter"):
        publisher.publish(messages.type(STRING)("x"), 0)
    with pytest.raises(OSError, match="closed"):
        here.publisher("/chatter", STRING)


def test_a_taken_port_is_named(opened, messages):
    here = opened()
    with pytest.raises(OSError, match=here.config.listen[0]):
        ZenohTransport(messages, ZenohConfig(listen=here.config.listen, connect=()))


def test_other_computers_only_on_demand():
    with pytest.raises(ValueError, match=r"tcp/192\.168\.0\.7:7447 is not on this computer"):
        ZenohConfig(connect=("tcp/192.168.0.7:7447",))
    with pytest.raises(ValueError, match="remote=true"):
        ZenohConfig(listen=("tcp/0.0.0.0:7447",))
    with pytest.raises(ValueError, match="remote=true"):
        ZenohConfig(listen=("tcp/[::]:7447",))
    assert ZenohConfig(connect=("tcp/192.168.0.7:7447",), remote=True).remote
    assert ZenohConfig(connect=("tcp/[::1]:7447", "tcp/localhost:7447")).connect
    with pytest.raises(ValueError, match="peer, client, router"):
        ZenohConfig(mode="broker")


def test_nobody_is_looked_for():
    settings = ZenohConfig().session()
    assert settings["scouting/multicast/enabled"] is False
    assert settings["transport/shared_memory"] == {"enabled": False}


ECHO = """
import sys, time
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import QoS
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport, beside, numbered
config = ZenohConfig(node="/echo", connect=(sys.argv[1],), shared_memory=sys.argv[2] == "shared")
transport = ZenohTransport(Messages(), config)
image = "sensor_msgs/msg/Image"
back = transport.publisher("/back", image)
transport.subscribe("/there", image, lambda sample: back.send(sample.data, sample.stamp_ns))
print("ready", flush=True)
sys.stdin.read()  # until the other end is closed, or a signal
"""


@pytest.mark.parametrize("memory", ["tcp", "shared"])
def test_an_image_goes_to_another_process_and_back(opened, messages, memory):
    here = opened(shared_memory=memory == "shared")
    got = []
    here.subscribe("/back", "sensor_msgs/msg/Image", got.append)
    image = messages.type("sensor_msgs/msg/Image")(
        messages.header(5, "camera"), 480, 640, "rgb8", 0, 1920,
        np.arange(480 * 1920, dtype="uint8"),
    )  # fmt: skip
    publisher = here.publisher("/there", "sensor_msgs/msg/Image")
    with subprocess.Popen(
        [sys.executable, "-c", ECHO, here.config.listen[0], memory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as echo:  # fmt: skip
        assert echo.stdout.readline() == "ready\n"

        def heard():
            publisher.publish(image, 5)
            time.sleep(0.05)
            return bool(got) and (memory == "tcp" or here.shared)

        until(heard, "the image")
        assert got[0].data == messages.encode(image)
        echo.stdin.close()
        assert echo.wait(PATIENCE_S) == 0  # without having closed its transport


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_other_process_may_die(opened, messages, how):
    here = opened()
    with subprocess.Popen(
        [sys.executable, "-c", ECHO, here.config.listen[0], "tcp"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as echo:  # fmt: skip
        assert echo.stdout.readline() == "ready\n"
        until(lambda: here.connected == 1, "the other process")
        os.kill(echo.pid, how)
        until(lambda: here.connected == 0, "the link to go")
    here.publisher("/there", STRING).publish(messages.type(STRING)("x"), 0)


def test_who_connects_before_the_other_listens_finds_it_later(messages):
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    early = ZenohTransport(messages, ZenohConfig("/early", listen=(), connect=(endpoint,)))
    time.sleep(0.5)
    assert early.connected == 0
    late = ZenohTransport(messages, ZenohConfig("/late", listen=(endpoint,), connect=()))
    try:
        until(lambda: early.connected == 1, "a link")
    finally:
        early.close()
        late.close()


def test_a_node_beside_another_is_heard_without_it(messages, opened):
    node = opened()
    ear = opened(listen=())
    got = []
    ear.subscribe("/chatter", STRING, got.append)
    own = beside(node.config, "/beside")
    assert own.listen == ("tcp/127.0.0.1:0",)
    spare = ZenohTransport(messages, own)
    try:
        until(lambda: ear.connected == 2, "gossip")
        node.close()
        message = messages.type(STRING)("still here")
        send_until_heard(spare.publisher("/chatter", STRING), message, got)
    finally:
        spare.close()


def test_where_a_node_beside_another_listens_and_connects():
    config = ZenohConfig(
        listen=("tcp/0.0.0.0:7", "tcp/127.0.0.1:8"), connect=("tcp/10.0.0.1:9",), remote=True
    )
    own = beside(config, "/b")
    assert own.node == "/b"
    assert own.listen == ("tcp/0.0.0.0:0", "tcp/127.0.0.1:0")
    assert own.connect == ("tcp/127.0.0.1:7", "tcp/127.0.0.1:8", "tcp/10.0.0.1:9")
    assert beside(config, "/b", ("tcp/127.0.0.1:5",)).listen == ("tcp/127.0.0.1:5",)
    client = beside(ZenohConfig(mode="client"), "/b")
    assert (client.mode, client.connect) == ("client", ("tcp/127.0.0.1:7447",))


def test_ports_that_are_any_get_numbers():
    config = numbered(ZenohConfig(listen=("tcp/127.0.0.1:0", "tcp/[::1]:0", "tcp/127.0.0.1:71")))
    first, second, third = (one.rpartition(":") for one in config.listen)
    assert (first[0], second[0]) == ("tcp/127.0.0.1", "tcp/[::1]")
    assert min(int(first[2]), int(second[2])) > 0
    assert third[2] == "71"
