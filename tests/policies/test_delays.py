"""Delay in ticks that were really consumed: what users of other schedulers ran into."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.base import Plan
from fastloop.policies.chunks import RecedingHorizon, TemporalEnsemble
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

STATE, HORIZON = "observation.state", 12


class Counting:
    """Plans for every tick the number of that tick, counted from the observation."""

    def __init__(self, control_hz=10.0, n_action_steps=4):
        action = ActionSpec(1, "absolute_position", (-9e9,), (9e9,))
        self.spec = PolicySpec(
            {STATE: TensorSpec((1,))}, action, 1, HORIZON, n_action_steps, control_hz
        )

    def plan(self, history, *, rng, budget=None):
        ticks = history.ticks[:, None] + torch.arange(HORIZON)
        return Plan(ticks[..., None].float(), 1 / self.spec.control_hz, history.ticks)


def drive(delays, chunking, **spec):
    """What is executed, tick by tick, where plan i is taken up `delays[i]` ticks late."""
    session, executed = Session(Counting(**spec), chunking=chunking), []

    def act():
        executed.append(session.act(0).item())
        session.observe(0, {STATE: torch.zeros(1)})

    session.observe(0, {STATE: torch.zeros(1)})
    for late in delays:
        actions = session.plan([0]).actions[0]
        for _ in range(late):
            act()
        session.install(0, actions, late=late)
        while not session.due(0):
            act()
    return session, executed


CHUNKINGS = st.one_of(
    st.builds(RecedingHorizon, st.integers(1, 6)), st.builds(TemporalEnsemble, st.floats(0, 1))
)


@given(st.lists(st.integers(0, 5), max_size=8), CHUNKINGS)
def test_no_delay_makes_the_arm_jump(delays, chunking):
    """lerobot#4223: violent jumps where a chunk was cut by an estimate of the delay. Whatever the
    delays are, every tick gets the action that was planned for that tick."""
    _, executed = drive([0, *delays], chunking)
    assert executed == pytest.approx(list(range(len(executed))), abs=1e-4)


def test_an_empty_chunk_holds_its_last_action_and_is_never_zero():
    """lerobot#4454: chunks padded with zeros pulled the arm to the mean of the dataset."""
    _, executed = drive([0, HORIZON + 3], RecedingHorizon(4))
    assert executed[:HORIZON] == list(range(HORIZON))
    assert executed[HORIZON : HORIZON + 4] == [HORIZON - 1] * 4


def test_the_splice_is_at_the_tick_and_not_at_the_start_of_the_new_chunk():
    """lerobot#4454: the new chunk was executed from its first action although time had passed."""
    session, executed = drive([0, 3], RecedingHorizon(4))
    assert executed == [0, 1, 2, 3, 4, 5, 6, 7]
    assert session.histories[0].underway.tick == 4


def test_the_next_plan_is_asked_for_while_actions_are_left():
    """lerobot#1557: inference began when the queue was empty, and the arm stood still meanwhile."""
    session, _ = drive([0], RecedingHorizon(4))
    assert session.due(0)
    ahead = [session.act(0).item() for _ in range(HORIZON - 4)]
    assert ahead == list(range(4, HORIZON))


def test_the_first_plan_is_no_measurement_of_delay():
    """strands-labs/robots#714: warm-up was counted as latency."""
    session, _ = drive([0, 2, 1], RecedingHorizon(4))
    assert session.histories[0].underway.delays == (2, 1)


@pytest.mark.parametrize("control_hz", [10.0, 30.0, 50.0])
def test_delays_are_ticks_whatever_the_rate(control_hz):
    """strands-labs/robots#725: 30 Hz was taken for granted."""
    session, executed = drive([0, 3, 2], RecedingHorizon(4), control_hz=control_hz)
    assert session.histories[0].underway.delays == (3, 2)
    assert executed == list(range(len(executed)))


def test_only_the_last_delays_count():
    session, _ = drive([0, 6, *[1] * 10], RecedingHorizon(4))
    assert session.histories[0].underway.delays == (1,) * 10


def test_a_new_episode_forgets_them():
    session, _ = drive([0, 3], RecedingHorizon(4))
    session.begin(0, 1)
    assert session.histories[0].underway is None


def test_a_frozen_policy_spec_says_the_rate():
    """The rate is the policy's own word, told to the loop; there is no default."""
    fields = {field.name: field for field in dataclasses.fields(PolicySpec)}
    assert fields["control_hz"].default is dataclasses.MISSING
