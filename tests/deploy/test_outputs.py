"""What is published goes out, whoever listens in."""

import numpy as np
import pytest

from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.motion import Motion
from fastloop.deploy.transport.loopback import Bus, LoopbackTransport

PLAN = "/plan"


def test_a_tap_that_fails_does_not_keep_a_plan_from_going_out():
    pytest.importorskip("rosbags", reason="messages are of it (extra ros)")
    from fastloop.deploy.messages import Messages
    from fastloop.deploy.outputs import PlanSender

    def tap(sample):
        raise OSError("no space left on device")

    messages, got = Messages(), []
    bus = Bus(VirtualClock())
    transport = LoopbackTransport(messages, bus)
    LoopbackTransport(messages, bus).subscribe(PLAN, "nav_msgs/msg/Path", got.append)
    sender = PlanSender(
        messages, transport, name="node", outputs={PLAN: "nav_msgs/msg/Path"}, tap=tap
    )
    with pytest.raises(OSError, match="no space left"):
        sender.send(Motion(np.arange(2.0), np.zeros((2, 5))), 10**9)
    assert [sample.topic for sample in got] == [PLAN]
