"""What plans beside the loop has lived through the same ticks as the loop."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.inputs import Held, Snapshot
from fastloop.deploy.motion import State
from fastloop.deploy.planner import SessionPlanner
from fastloop.deploy.readers import ego_heading, ego_states
from fastloop.deploy.worker import Acted, Installed, Job, Observed
from fastloop.policies.base import Plan
from fastloop.policies.best_of import underway
from fastloop.policies.chunks import TemporalEnsemble
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

KEY = "observation.state"


class Counting:
    """Plans the newest state and what follows on it; remembers the histories that it saw."""

    def __init__(self, n_obs_steps=2):
        self.spec = PolicySpec(
            {KEY: TensorSpec((1,))},
            ActionSpec(1, "joint_position", (-9.0,), (9.0,)),
            n_obs_steps=n_obs_steps, horizon=6, n_action_steps=2, control_hz=10.0,
        )  # fmt: skip
        self.seen = []

    def plan(self, history, *, rng, budget=None):
        self.seen.append((history, budget))
        first = history[KEY][:, -1]
        return Plan((first + torch.arange(4.0))[..., None], 0.1, history.ticks)


def state(value):
    return State(0.0, np.array([float(value)]), np.zeros(1))


def seen(value):
    return Observed(Snapshot({}, (state(value),)))


def read(snapshot):
    if snapshot.states[-1].point[0] < 0:
        raise ValueError("truncated")
    return torch.tensor(snapshot.states[-1].point, dtype=torch.float32)


def job(*events, tick=0, fresh=False):
    return Job(tick, 0.0, events, fresh, state(0), "full", 0.08, 0.0)


def make(policy, **settings):
    return SessionPlanner({"full": policy}, {KEY: read}, **settings)


def test_frames_and_actions_are_those_of_the_ticks():
    policy = Counting()
    planner = make(policy)
    assert planner(job(seen(0))).actions[:, 0].tolist() == [0, 1, 2, 3]
    events = (seen(1), Installed(1), Acted(False), seen(2), Acted(True), seen(3))
    planner(job(*events, tick=3))
    history, budget = policy.seen[-1]
    assert history[KEY][0, :, 0].tolist() == [2, 3]
    assert [action.item() for action in history.actions[0]] == [1, 2]  # its first one had passed
    assert [bool(one) for one in history.overridden[0]] == [False, True]
    assert history.ticks.tolist() == [3]
    assert 0 < budget.deadline_s <= 0.08


def test_a_frame_that_cannot_be_read_is_the_one_before_and_the_newest_is_an_error():
    policy = Counting()
    planner = make(policy)
    planner(job(seen(5)))
    planner(job(seen(-1), seen(7)))
    assert policy.seen[-1][0][KEY][0, :, 0].tolist() == [5, 7]
    with pytest.raises(ValueError, match="truncated"):
        planner(job(seen(-1)))
    planner(job(seen(8)))
    history = policy.seen[-1][0]
    assert history[KEY][0, :, 0].tolist() == [7, 8]
    assert history.ticks.tolist() == [4]  # no tick was lost


def test_what_cannot_be_read_is_let_go_at_once():
    """A camera may send garbage for hours, and the loop collects none while it is busy."""
    planner, held = make(Counting()), Held(0, 0.0, 0.0, 0)
    gone = weakref.ref(held)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="truncated"):
            planner(job(Observed(Snapshot({"/camera": held}, (state(-1),)))))
        del held
        assert gone() is None
    finally:
        gc.enable()


def test_a_fresh_start_forgets():
    policy = Counting()
    planner = make(policy)
    planner(job(seen(1)))
    planner(job(seen(2), fresh=True))
    history = policy.seen[-1][0]
    assert history[KEY][0, :, 0].tolist() == [2, 2]
    assert history.ticks.tolist() == [0]


def test_a_plan_later_than_it_is_long_holds_its_last_action():
    policy = Counting()
    planner = make(policy)
    planner(job(seen(0)))
    planner(job(Installed(99), Acted(False), seen(1)))
    assert [action.item() for action in policy.seen[-1][0].actions[0]] == [3]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_the_plan_under_way_is_what_is_executed_next(late):
    """However late the first plan of an episode comes: there were ticks before it."""
    policy = Counting()
    planner = make(policy)
    planner(job(seen(0)))
    waiting = [event for tick in range(late) for event in (Acted(True), seen(tick + 1))]
    before = waiting[:-1] if late else []  # its tick is observed when it is in execution
    first = [] if late else [Acted(False), seen(1)]
    planner(job(*before, Installed(late), *waiting[-1:], *first, tick=max(late, 1)))
    said, _ = underway(policy.seen[-1][0], 2, 1)
    now = max(late, 1)
    assert said[0, :, 0].tolist() == [now, now + 1 if now < 3 else 0]


def test_a_plan_that_nobody_follows_is_not_under_way():
    policy = Counting()
    planner = make(policy)
    planner(job(seen(0)))
    planner(job(Installed(0), Acted(True), seen(0)))  # the machine stands and holds
    assert not underway(policy.seen[-1][0], 2, 1)[1].any()
    planner(job(Installed(0), Acted(False), seen(1)))
    said, told = underway(policy.seen[-1][0], 2, 1)
    assert told.all()
    assert said[0, :, 0].tolist() == [1, 2]
    assert policy.seen[-1][0].underway[0].delays == (0,)


def test_an_ensemble_is_executed_as_it_averages():
    planner = make(Counting(1), chunking=TemporalEnsemble(decay=0.0))
    planner(job(seen(0)))
    actions = planner(job(Installed(0), Acted(False), seen(3))).actions[:, 0]
    assert actions.tolist() == [(1 + 3) / 2, (2 + 4) / 2, (3 + 5) / 2, 6]


@pytest.mark.parametrize(
    ("value", "words"),
    [(torch.zeros(2), r"has shape \(2,\)"), (torch.full((1,), torch.nan), "finite")],
)
def test_observations_of_another_shape_or_of_nan_are_refused(value, words):
    planner = SessionPlanner({"full": Counting()}, {KEY: lambda snapshot: value})
    with pytest.raises(ValueError, match=words):
        planner(job(seen(0)))


def test_an_input_without_a_reader_is_named():
    with pytest.raises(ValueError, match="no topic gives; topics give nothing"):
        SessionPlanner({"full": Counting()}, {})


def test_ego_states_of_a_circle():
    """10 m/s and 0.5 rad/s: 20 m radius, the present heading is x."""
    t = np.arange(0, 4, 0.02)
    heading = 0.5 * t
    points = np.column_stack([20 * np.sin(heading), 20 - 20 * np.cos(heading), heading, 0 * t + 10])
    states = [
        State(time, np.append(point, 0.0), np.array([0.5]))
        for time, point in zip(t.tolist(), points, strict=True)
    ]
    rows = ego_states(states, 3, 0.5)
    assert np.allclose(rows[-1], [0, 0, 10, 0, 0, 0], atol=1e-9)
    back = -0.5  # rad, a second ago
    assert np.allclose(rows[0, :2], [20 * np.sin(back), 20 - 20 * np.cos(back)], atol=0.02)
    assert np.allclose(rows[0, 2:4], [10 * np.cos(back), 10 * np.sin(back)], atol=0.02)
    assert np.allclose(ego_heading(states, 3, 0.5), [-0.5, -0.25, 0], atol=1e-6)
    alone = ego_states(states[-1:], 2, 0.5)
    assert np.allclose(alone[0], [-5, 0, 10, 0, 0, 0], atol=1e-9)


@given(
    turns=st.lists(st.floats(-3, 3), min_size=1, max_size=40),
    rows=st.integers(1, 4),
    dt=st.floats(0.01, 0.5),
)
def test_headings_go_on_across_half_a_turn(turns, rows, dt):
    """Measured within half a turn, as odometry tells it: the same as if it had been counted on."""
    counted = np.cumsum(turns)
    told = np.remainder(counted + np.pi, 2 * np.pi) - np.pi
    both = [
        [State(0.1 * k, np.array([k, 0.0, h, 5.0, 0.0]), np.zeros(1)) for k, h in enumerate(hs)]
        for hs in (counted, told)
    ]
    np.testing.assert_allclose(*(ego_states(states, rows, dt) for states in both), atol=1e-6)
    apart = np.subtract(*(ego_heading(states, rows, dt) for states in both))
    np.testing.assert_allclose(np.sin(apart / 2), 0, atol=1e-6)


def test_states_of_long_ago_change_nothing():
    new = [State(0.02 * k, np.array([k, 0.0, 0.1, 5.0, 0.0]), np.zeros(1)) for k in range(100)]
    old = [
        State(time - 100, point * 7, rate)
        for time, point, rate in ((s.time, s.point, s.rate) for s in new)
    ]
    assert np.array_equal(ego_states(old + new, 3, 0.25), ego_states(new, 3, 0.25))
