"""Measured states: how far they reach back, and what a clock that is set does to them."""

import numpy as np
import pytest

from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.inputs import Inputs, Topic
from fastloop.deploy.motion import State
from fastloop.deploy.readers import ego_states
from fastloop.deploy.transport.base import Sample

STATE = "/state"


def decode(sample, time):
    return State(time, np.frombuffer(sample.data), np.zeros(1))


def listening():
    clock = VirtualClock()
    topic = Topic(STATE, "state", decode, max_age_s=0.3, eager=True)
    return Inputs([topic], clock, state=STATE), clock


def send(inputs, clock, x, speed, sent_ns=None):
    now = clock.wall_ns()
    data = np.array([x, 0.0, 0.0, speed, 0.0]).tobytes()
    return inputs.offer(Sample(STATE, "state", data, sent_ns or now, now))


@pytest.mark.parametrize("hz", [20, 1000])
def test_states_reach_back_however_often_they_come(hz):
    """From 10 m/s at 2 m/s^2, for three seconds."""
    inputs, clock = listening()
    for tick in range(3 * hz + 1):
        t = tick / hz
        send(inputs, clock, 10 * t - t * t, 10 - 2 * t)
        clock.advance(1 / hz)
    rows = ego_states(inputs.look().states, 4, 0.75)
    back = np.array([2.25, 1.5, 0.75, 0.0])
    assert np.allclose(rows[:, 0], -(4 * back + back**2), atol=0.01)
    assert np.allclose(rows[:, 2], 4 + 2 * back, atol=0.01)


@pytest.mark.parametrize("jump", [3600.0, 1.0, -3600.0])
def test_a_message_under_way_when_the_clock_is_set_leaves_the_past_as_it_was(jump):
    inputs, clock = listening()
    for tick in range(80):
        sent = clock.wall_ns()
        clock.advance(0.005)
        if tick == 60:
            clock.set_wall(jump)
        send(inputs, clock, 0.5 * tick, 10.0, sent)
        clock.advance(0.045)
    rows = ego_states(inputs.look().states, 5, 0.5)
    assert np.allclose(rows[:, 0], [-20, -15, -10, -5, 0], atol=0.1)


def test_a_bag_that_begins_anew_begins_a_new_past():
    inputs, clock = listening()
    send(inputs, clock, 100.0, 10.0)
    send(inputs, clock, 0.0, 10.0, clock.wall_ns() + 1)
    assert [state.point[0] for state in inputs.look().states] == [0.0]
