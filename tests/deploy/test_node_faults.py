"""What goes wrong round the loop: nobody hears it, somebody listens badly, frames differ."""

import dataclasses
import gc
import importlib.util
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.config import InputConfig
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.transport.base import LATCHED, SENSOR

spec = importlib.util.spec_from_file_location("node", Path(__file__).with_name("test_node.py"))
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)
CONFIG, World = node.CONFIG, node.World


class Dog:
    """A watchdog that remembers what it is told."""

    def __init__(self):
        self.beats, self.closed = [], []

    def alive(self):
        return True

    def beat(self, tick, motion):
        self.beats.append(tick)

    def rest(self):
        pass

    def close(self, *, takes_over=False):
        self.closed.append(takes_over)


class Listener:
    """Does something when a plan has gone out."""

    def __init__(self, published):
        self.published = published

    def received(self, sample):
        pass

    def faults(self):
        return []

    def close(self):
        pass


def watched(world):
    world.node.watchdog = Dog()
    return world.node.watchdog


def test_a_plan_that_does_not_go_out_is_no_sign_of_life():
    world, words = World(), []
    dog = watched(world)
    send = world.node.sender.send

    def fail(motion, stamp):
        if 5 <= world.node.loop.rungs.total() < 10:
            raise OSError("nobody there")
        send(motion, stamp)

    world.node.sender.send = fail
    world.node.run(ticks=15)
    assert len(dog.beats) == 15 - 5
    words = [(one.level, one.message) for one in world.health]
    error = b"\x02" if isinstance(words[0][0], bytes) else 2
    assert (error, "plans do not go out: OSError: nobody there") in words
    assert dog.closed == [False]


def test_who_listens_in_does_not_end_the_drive():
    def fail(published):
        raise RuntimeError("a full disk")

    world = World()
    world.node.listeners = [Listener(fail)]
    assert world.node.run(ticks=5) == 0
    assert len(world.plans) == 6
    assert world.node.error == "RuntimeError: a full disk"


def test_a_node_that_falls_leaves_the_machine_to_its_watchdog():
    world = World()
    dog = watched(world)

    def fail(t):
        raise MemoryError

    build = world.node.build

    def built():
        loop = build()
        loop.prepare = fail
        return loop

    world.node.build = built
    with pytest.raises(MemoryError):
        world.node.run(ticks=5)
    assert dog.closed == [True]


def test_what_is_said_once_is_heard_by_who_comes_later():
    asked = {}
    route = InputConfig("/route", "nav_msgs/msg/Path", max_age_s=None, shape=[4, 2])
    world = World(dataclasses.replace(CONFIG, inputs={**CONFIG.inputs, "observation.route": route}))
    subscribe = world.node.transport.subscribe

    def heard(topic, type, callback, qos):
        asked[topic] = qos
        subscribe(topic, type, callback, qos)

    world.node.transport.subscribe = heard
    world.clock.at(2.0, world.node.finish)
    world.node.run()
    assert asked == {"/odometry": SENSOR, "/route": LATCHED}


def test_garbage_is_taken_out_although_ticks_are_long():
    class Cycle:
        def __init__(self):
            self.me = self

    world, left, alive = World(), [], []
    world.node.quiet_gc = True

    def busy(published):
        left.append(weakref.ref(Cycle()))
        alive.append(sum(one() is not None for one in left))
        world.clock.advance(0.06)

    world.node.listeners = [Listener(busy)]
    world.node.run(ticks=210)
    assert gc.isenabled()
    assert 50 < max(alive) <= 101  # ten seconds' worth


@pytest.mark.parametrize(("frame", "drives"), [("odom", True), ("", True), ("map", False)])
def test_a_state_in_another_frame_is_no_state(frame, drives):
    world = World()

    def speak():
        now, stamp = world.clock.now(), world.clock.wall_ns()
        point = np.array([5.0 * now, 0.0, 0.0, 5.0])
        world.mouth.publish(make_odometry(world.messages, stamp, point, frame=frame), stamp)
        world.clock.at(now + 0.02, speak)

    world.silent = True
    speak()
    world.clock.at(3.0, world.node.finish)
    world.node.run()
    assert (len(world.plans) > 1) == drives
    words = "no message on /odometry yet that can be taken: it is in the frame 'map', plans go"
    assert any(one.message.startswith(words) for one in world.health) != drives


def test_a_large_heap_is_gone_through_before_there_is_a_state_to_grow_old(monkeypatch):
    """Going through a large one takes seconds, in which messages lie about."""
    world, order = World(), []
    world.node.quiet_gc = True
    subscribe = world.node.transport.subscribe

    def heard(*given):
        order.append("listens")
        subscribe(*given)

    def collect(generation=2):
        if world.node.last is None:
            order.append(f"collects {generation}")

    world.node.transport.subscribe = heard
    monkeypatch.setattr(gc, "collect", collect)
    world.node.run(ticks=3)
    assert order == ["collects 2", "listens"]
