"""A recording that is sent as it was heard."""

from threading import Event

import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy import replay
from fastloop.deploy.bags.reading import BagError
from fastloop.deploy.transport.base import Sample


class Transport:
    def __init__(self):
        self.sent = []

    def publisher(self, topic, kind):
        return self

    def send(self, data, stamp_ns):
        self.sent.append(data)


@pytest.fixture
def damaged(monkeypatch):
    def read(bag, topics=None):
        for number in range(3):
            yield Sample("/odometry", "nav_msgs/msg/Odometry", bytes([number]), None, 1000 + number)
        raise BagError("the rest of it is damaged")

    monkeypatch.setattr(replay, "read_bag", read)


def test_a_damaged_recording_ends_at_real_pace_and_says_why(damaged):
    sent, ended = Transport(), Event()
    played = replay.Replay("bag", ["/odometry"], "real")
    played.start(sent, ended.set)
    assert ended.wait(20)
    assert sent.sent == [b"\0", b"\1", b"\2"]
    assert isinstance(played.error, BagError)


def test_in_virtual_time_whoever_moves_the_clock_is_told(damaged):
    sent = Transport()
    played = replay.Replay("bag", ["/odometry"])
    played.start(sent, lambda: pytest.fail("it did not come to its end"))
    with pytest.raises(BagError, match="damaged"):
        played.clock.advance(1.0)
    assert sent.sent == [b"\0", b"\1", b"\2"]
