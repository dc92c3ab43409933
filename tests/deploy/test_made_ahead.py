"""What is made of a message when it comes is made once, and its faults are the plan's."""

import threading

import pytest

from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.inputs import Inputs, Topic
from fastloop.deploy.motion import State
from fastloop.deploy.transport.base import Sample

STATE, CAMERA = "/state", "/camera"


class Maker:
    """Makes a word of a message, and remembers which."""

    def __init__(self):
        self.made = []

    def __call__(self, value):
        self.made.append(value)
        if value == "bad":
            raise ValueError("bad picture")
        return value.upper()


def inputs_with(*ahead):
    topics = [
        Topic(STATE, "state", lambda sample, time: State(time, 0, 0), eager=True),
        Topic(CAMERA, "image", lambda sample, time: sample.data.decode(), ahead=ahead),
    ]
    return Inputs(topics, VirtualClock(), state=STATE)


def offer(inputs, words, stamp=1):
    inputs.offer(Sample(STATE, "state", b"", stamp, stamp))
    return inputs.offer(Sample(CAMERA, "image", words.encode(), stamp, stamp))


def test_it_is_there_when_a_plan_asks():
    maker = Maker()
    inputs = inputs_with(maker)
    offer(inputs, "here")
    assert maker.made == ["here"]
    held = inputs.look().held[CAMERA]
    assert [held.made(maker), held.made(maker)] == ["HERE", "HERE"]
    assert maker.made == ["here"]


def test_what_was_not_asked_for_ahead_is_made_when_it_is_asked_for():
    maker = Maker()
    inputs = inputs_with()
    offer(inputs, "here")
    assert maker.made == []
    assert inputs.look().held[CAMERA].made(maker) == "HERE"


def test_a_bad_message_is_taken_and_its_fault_is_the_plans():
    maker = Maker()
    inputs = inputs_with(maker)
    assert offer(inputs, "bad") == ""
    with pytest.raises(ValueError, match="bad picture"):
        inputs.look().held[CAMERA].made(maker)


def test_nothing_is_made_of_what_is_dropped():
    maker = Maker()
    inputs = inputs_with(maker)
    offer(inputs, "new", stamp=2)
    assert offer(inputs, "old", stamp=1) == "out of order"
    assert maker.made == ["new"]


def test_who_asks_while_it_is_being_made_waits_for_it():
    begun, go, found = threading.Event(), threading.Event(), []

    def slow(value):
        begun.set()
        assert go.wait(10)
        return [value]

    inputs = inputs_with(slow)
    bringing = threading.Thread(target=offer, args=(inputs, "here"))
    bringing.start()
    assert begun.wait(10)
    held = inputs.look().held[CAMERA]  # nobody has to wait to look
    asking = threading.Thread(target=lambda: found.append(held.made(slow)))
    asking.start()
    go.set()
    bringing.join(10)
    asking.join(10)
    assert found[0] is held.made(slow)


@pytest.mark.parametrize(("kind", "ahead"), [("Image", 1), ("CompressedImage", 0)])
def test_raw_pictures_are_made_when_they_come(kind, ahead):
    pytest.importorskip("rosbags", reason="messages are of it (extra ros)")
    from fastloop.bench.vehicle.straight import EGO, IMAGE, PLAN_HZ, WAYPOINTS, Straight
    from fastloop.deploy.assembly import make_loop
    from fastloop.deploy.config import DeployConfig, InputConfig
    from fastloop.deploy.conversions.image import Picture
    from fastloop.deploy.messages import Messages

    inputs = {
        IMAGE: InputConfig(CAMERA, f"sensor_msgs/msg/{kind}"),
        EGO: InputConfig(reads="ego_states", shape=[1, 6]),
    }
    config = DeployConfig(
        hz=10.0, state=InputConfig(STATE, "nav_msgs/msg/Odometry"), inputs=inputs,
        plan_hz=PLAN_HZ, waypoints=WAYPOINTS,
    )  # fmt: skip
    policy = Straight(10.0, width=8, height=4)
    loop = make_loop(config, {"full": policy}, {"full": 1e-3}, Messages(), VirtualClock())
    made = {topic.name: topic.ahead for topic in loop.inputs.topics}
    assert made == {STATE: (), CAMERA: (Picture((4, 8), "uint8"),) * ahead}


def test_a_picture_for_what_is_none_is_refused():
    from fastloop.deploy.readers import make_picture

    with pytest.raises(ValueError, match=r"a picture is \(3, H, W\), the policy reads \(16,\)"):
        make_picture((16,), "uint8")
