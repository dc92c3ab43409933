"""Rungs are computed before they are needed."""

import numpy as np
import pytest

from fastloop.deploy.ladder import STOP, Ladder
from fastloop.deploy.motion import SPEED, Motion, State
from fastloop.deploy.vehicle import Vehicle


class Counted:
    """A vehicle that counts the stops it was asked for."""

    def __init__(self):
        self.vehicle, self.stops = Vehicle(4.0), 0

    def comfort_stop(self, motion, t):
        self.stops += 1
        return self.vehicle.comfort_stop(motion, t)

    def __getattr__(self, name):
        return getattr(self.vehicle, name)


def straight(t):
    times = np.arange(21) / 4
    points = np.column_stack([8 * (t + times), *np.zeros((2, 21)), np.full(21, 8.0), np.zeros(21)])
    return Motion(t + times, points)


def test_a_stop_is_ready_when_the_tick_comes_that_needs_it():
    ladder = Ladder(body := Counted(), period_s=0.1)
    state = State(0.0, np.array([0.0, 0.0, 0.0, 8.0, 0.0]), np.zeros(1))
    assert ladder.accept(straight(0), observed=0, variant="", state=state, t=0) == ""
    ladder.choose(0, state, fresh=True, why="")
    assert body.stops == 0  # nobody waits for it while a message is due
    ladder.prepare(0.05, state)
    assert body.stops == 1
    leave = ladder.plan.leave_by
    choice = ladder.choose(leave + 0.05, state, fresh=False, why="late")
    assert (choice.rung, body.stops) == (STOP, 1)


def test_the_last_rung_is_prepared_even_where_the_stop_cannot_be():
    class Broken(Counted):
        def comfort_stop(self, motion, t):
            raise ZeroDivisionError

    ladder = Ladder(Broken(), period_s=0.1)
    state = State(0.0, np.array([0.0, 0.0, 0.0, 8.0, 0.0]), np.zeros(1))
    ladder.accept(straight(0), observed=0, variant="", state=state, t=0)
    with pytest.raises(ZeroDivisionError):
        ladder.prepare(0.05, state)
    assert ladder.last_resort(0.1, "broken").motion.points[-1, SPEED] == 0
