"""The transport in memory, and what tests can do to it."""

import pytest

from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import LATCHED
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport

pytest.importorskip("rosbags", reason="messages are of it (extra ros)")

STRING = "std_msgs/msg/String"


@pytest.fixture(scope="module")
def messages():
    return Messages()


@pytest.fixture
def text(messages):
    return messages.type(STRING)


def nodes(messages, fault=None):
    bus = Bus(VirtualClock(), fault)
    return bus, LoopbackTransport(messages, bus), LoopbackTransport(messages, bus)


def test_a_message_arrives_with_its_stamp(messages, text):
    bus, one, other = nodes(messages)
    got = []
    other.subscribe("/chatter", STRING, got.append)
    one.publisher("/chatter", STRING).publish(text("hello"), 5)
    (sample,) = got
    assert (sample.topic, sample.type, sample.stamp_ns) == ("/chatter", STRING, 5)
    assert sample.received_ns == bus.clock.wall_ns()
    assert messages.decode(STRING, sample.data).data == "hello"


def test_samples_are_lost_doubled_and_late(messages, text):
    fates = iter([[], [0.0, 0.0], [2.0], [0.0]])
    bus, one, other = nodes(messages, lambda sample: [(late, sample) for late in next(fates)])
    got = []
    other.subscribe("/chatter", STRING, got.append)
    publisher = one.publisher("/chatter", STRING)
    for stamp in range(4):
        publisher.publish(text("x"), stamp)
    assert [sample.stamp_ns for sample in got] == [1, 1, 3]
    bus.clock.advance(3)
    assert [sample.stamp_ns for sample in got] == [1, 1, 3, 2]
    assert got[-1].received_ns - got[0].received_ns == 2_000_000_000


def test_gone_and_back(messages, text):
    bus, one, other = nodes(messages)
    got = []
    other.subscribe("/chatter", STRING, got.append)
    publisher = one.publisher("/chatter", STRING)
    bus.down = True
    assert one.faults()
    with pytest.raises(OSError, match="/chatter cannot be sent: the transport is down"):
        publisher.publish(text("x"), 0)
    bus.down = False
    publisher.publish(text("x"), 1)
    assert [sample.stamp_ns for sample in got] == [1]
    assert not one.faults()


def test_latecomers_get_what_was_kept(messages, text):
    _, one, other = nodes(messages)
    publisher = one.publisher("/info", STRING, LATCHED)
    for stamp in range(3):
        publisher.publish(text("x"), stamp)
    late, volatile = [], []
    other.subscribe("/info", STRING, late.append, LATCHED)
    other.subscribe("/info", STRING, volatile.append)
    assert [sample.stamp_ns for sample in late] == [2]
    assert volatile == []


def test_types_of_another_version_do_not_meet(messages):
    trajectory = "autoware_planning_msgs/msg/Trajectory"
    bus = Bus(VirtualClock())
    got = []
    old = LoopbackTransport(Messages("fixed"), bus)
    old.subscribe("/plan", trajectory, got.append)
    message = messages.type(trajectory)(messages.header(0, "map"), [])
    LoopbackTransport(messages, bus).publisher("/plan", trajectory).publish(message, 0)
    assert got == []


def test_nothing_passes_once_closed(messages, text):
    _, one, other = nodes(messages)
    got = []
    other.subscribe("/chatter", STRING, got.append)
    publisher = one.publisher("/chatter", STRING)
    other.close()
    publisher.publish(text("x"), 0)
    one.close()
    with pytest.raises(OSError, match="closed"):
        publisher.publish(text("x"), 1)
    assert got == []


def test_a_service_answers_until_it_closes(messages):
    _, one, other = nodes(messages)
    kind = "lifecycle_msgs/srv/ChangeState"
    request = messages.type(kind + "_Request")(
        messages.type("lifecycle_msgs/msg/Transition")(3, "activate")
    )
    asked = []

    def answer(request):
        asked.append((request.transition.id, request.transition.label))
        return messages.type(kind + "_Response")(True)

    one.serve("/node/change_state", kind, answer)
    assert other.call("/node/change_state", kind, request).success
    assert asked == [(3, "activate")]
    with pytest.raises(OSError, match="/node/get_state is not answered"):
        other.call("/node/get_state", kind, request)
    one.close()
    with pytest.raises(OSError, match="is not answered"):
        other.call("/node/change_state", kind, request)
