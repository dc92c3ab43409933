"""The history of a client is that of a session in the same place."""

import itertools

import numpy as np
import pytest
import torch

from fastloop.deploy.server.protocol import Request, RequestError
from fastloop.deploy.server.sessions import Row, join
from fastloop.policies.session import Session

STATE = "observation.state"


def at(tick, **ours):
    return Request({STATE: np.float32([tick, 0])}, tick=tick, **ours)


def states(history):
    return history[STATE][0, :, 0].tolist()


def test_ticks_in_a_row_give_the_history_of_a_session(echo):
    policy = echo(n_obs_steps=3, lags=(4, 1, 0))
    row, session = Row(policy.spec, seed=3), Session(policy, seed=3)
    for tick in range(9):
        history, key = row.take(at(tick))
        session.observe(0, {STATE: torch.tensor([tick, 0.0])})
        actions = session.plan([0]).actions[0]
        expected = policy.histories[-1]
        assert states(history) == states(expected)
        assert history.ticks.tolist() == expected.ticks.tolist()
        assert key == (3, 0, tick)
        row.planned(at(tick), actions)
        session.install(0, actions)
        session.act(0)
        assert row.history.underway.tick == session.histories[0].underway.tick == tick


def test_a_request_without_a_tick_stands_for_itself(echo):
    row = Row(echo().spec, 0)
    for n in range(3):
        history, key = row.take(Request({STATE: np.float32([n, 0])}))
        assert states(history) == [n, n]
        assert key == (0, 0, n), "its noise is its own all the same"


def test_a_gap_begins_a_new_window_and_keeps_the_plan_under_way(echo):
    row = Row(echo().spec, 0)
    row.take(at(0))
    row.planned(at(0), torch.zeros(5, 3))
    history, key = row.take(at(4))
    assert states(history) == [4, 4], "the frame of tick 3 was never seen"
    assert history.underway[0].tick == 0
    assert key == (0, 0, 4)
    assert row.frames == 1
    assert states(row.take(at(5))[0]) == [4, 5]
    assert row.frames == 2


def test_a_tick_that_goes_back_forgets_the_plan_too(echo):
    row = Row(echo().spec, 0)
    row.take(at(6))
    row.planned(at(6), torch.zeros(5, 3))
    history, _ = row.take(at(2))
    assert history.underway == (None,)


def test_a_window_is_taken_as_it_is(echo):
    row = Row(echo().spec, 0)
    told = Request({STATE: np.float32([[5, 0], [9, 0]])}, window=True, key=(7, 8, 9))
    history, key = row.take(told)
    assert states(history) == [5, 9]
    assert (history.ticks.tolist(), key) == ([9], (7, 8, 9))


def test_a_new_episode_has_other_noise_and_no_memory(echo):
    numbers = itertools.count()
    row, other = Row(echo().spec, 0, numbers), Row(echo().spec, 0, numbers)
    row.take(at(0))
    row.begin()
    history, key = row.take(at(1))
    assert states(history) == [1, 1]
    assert (key, other.take(at(1))[1]) == ((0, 2, 1), (0, 1, 1))


def test_what_was_executed_is_in_the_history(echo):
    row = Row(echo().spec, 0)
    row.take(at(0))
    history, _ = row.take(at(1, executed=np.float32([[1, 2, 3]])))
    executed = history.executed([1], 3)
    assert executed.known.all()
    assert executed.actions[0, 0].tolist() == [1, 2, 3]


def test_how_late_plans_come_is_in_the_history_as_in_a_session(echo):
    policy = echo(horizon=9)
    row, session = Row(policy.spec, seed=3), Session(policy, seed=3)
    tick, late = 0, 0
    for after in (3, 1, 2, 0, 4):
        history, _ = row.take(at(tick, late=late))
        session.observe(0, {STATE: torch.tensor([tick, 0.0])})
        actions = session.plan([0]).actions[0]
        ours, theirs = history.underway[0], policy.histories[-1].underway[0]
        assert (ours and ours.delays) == (theirs and theirs.delays)
        assert (ours and ours.tick) == (theirs and theirs.tick)
        row.planned(at(tick), actions)
        late = after if tick else 0  # the world waits for the first plan
        for step in range(late):
            session.act(0)
            session.observe(0, {STATE: torch.tensor([tick + step + 1, 0.0])})
        session.install(0, actions, late=late)
        session.act(0)
        tick += late + 1
    assert row.take(at(tick, late=late))[0].underway[0].delays == (1, 2, 0, 4)


def test_an_episode_s_first_plan_is_not_late(echo):
    row = Row(echo().spec, 0)
    row.take(at(0))
    row.planned(at(0), torch.zeros(5, 3))
    history, _ = row.take(at(3, late=2))
    assert history.underway[0].delays == ()


def test_nothing_is_planned_from_nothing(echo):
    with pytest.raises(RequestError, match="no observation"):
        Row(echo().spec, 0).take(Request(None, reset=True))


def test_joined_histories_are_rows_of_one(echo):
    policy = echo()
    rows = [Row(policy.spec, 0) for _ in range(3)]
    whole = join([row.take(at(n))[0] for n, row in enumerate(rows)])
    assert len(whole) == 3
    assert whole[STATE][:, -1, 0].tolist() == [0, 1, 2]
    assert whole.ticks.tolist() == [0, 1, 2]
    assert whole.executed([1], 3).known.tolist() == [[False]] * 3
    assert whole.underway == (None,) * 3
