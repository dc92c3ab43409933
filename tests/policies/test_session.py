"""The session: the same actions however environments are batched and ordered."""

import random

import pytest
import torch

from fastloop.policies.base import Plan
from fastloop.policies.chunks import RecedingHorizon, TemporalEnsemble
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

TICKS = 8


class Echo:
    """Plans what it was asked with, so that a test can read it off the actions."""

    def __init__(self):
        self.spec = PolicySpec(
            inputs={"observation.state": TensorSpec((1,))},
            action=ActionSpec(3, "none", (0,) * 3, (1e9,) * 3),
            n_obs_steps=2,
            horizon=5,
            n_action_steps=2,
            control_hz=10.0,
        )
        self.rows = []
        self.seen = []

    def plan(self, history, *, rng, budget=None):
        self.rows.append(len(history))
        self.seen.append(history)
        newest = history["observation.state"][:, -1, 0]
        keys = torch.tensor([[episode, tick] for _, episode, tick in rng.keys])
        first = torch.cat([newest[:, None], keys.float()], 1)
        steps = torch.arange(4)[:, None] * torch.tensor([1, 0, 0])
        return Plan(first[:, None] + steps, dt=0.1, t0=history.ticks)


@pytest.fixture
def echo():
    return Echo()


def run(session, policy, observe, envs, order=0):
    """Act for TICKS ticks through observe, plan and act; (E, TICKS, A)."""
    shuffle = random.Random(order).shuffle
    taken = {env: [] for env in envs}
    for tick in range(TICKS):
        places = list(envs)
        shuffle(places)
        for env in places:
            session.observe(env, observe(policy, 100 * session.episodes[env] + tick))
        due = [env for env in places if session.due(env)]
        rows = session.plan_batch or len(due)
        for first in range(0, len(due), rows or 1):
            some = due[first : first + rows]
            for env, actions in zip(some, session.plan(some).actions, strict=False):
                session.install(env, actions)
        for env in places:
            taken[env].append(session.act(env))
    return torch.stack([torch.stack(taken[env]) for env in envs])


@pytest.mark.parametrize("chunking", [None, TemporalEnsemble()], ids=["receding", "ensemble"])
def test_an_episode_is_the_same_in_any_batch_slot_and_order(diffusion_policy, observe, chunking):
    policy = diffusion_policy()
    together = Session(policy, num_envs=6, chunking=chunking, seed=3, plan_batch=4)
    for env in range(6):
        together.begin(env, 10 + env)
    expected = run(together, policy, observe, range(6))
    assert expected.std(0).min() > 0, "episodes differ"
    for order in range(1, 3):
        shuffled = Session(policy, num_envs=6, chunking=chunking, seed=3, plan_batch=4)
        slots = random.Random(order).sample(range(6), 6)
        for env, slot in enumerate(slots):
            shuffled.begin(slot, 10 + env)
        assert torch.equal(run(shuffled, policy, observe, slots, order), expected)
    for env in range(6):
        alone = Session(policy, chunking=chunking, seed=3, plan_batch=4)
        alone.begin(0, 10 + env)
        assert torch.equal(run(alone, policy, observe, [0]), expected[env : env + 1])


def test_noise_belongs_to_the_episode_not_to_the_slot(diffusion_policy, observe):
    policy = diffusion_policy()
    session = Session(policy, num_envs=2, plan_batch=2)
    actions = {}
    for episodes in ((7, 8), (8, 7)):
        for env, episode in enumerate(episodes):
            session.begin(env, episode)
            session.observe(env, observe(policy, 0))
        for episode, plan in zip(episodes, session.plan([0, 1]).actions, strict=True):
            actions.setdefault(episode, []).append(plan)
    assert torch.equal(*actions[7])
    assert torch.equal(*actions[8])
    assert not torch.equal(actions[7][0], actions[8][0])


@pytest.mark.parametrize("plan_batch", [0, 2, 8])
@pytest.mark.parametrize("chunking", [None, RecedingHorizon(1), TemporalEnsemble()])
def test_select_action_is_the_ticks_of_all_environments(
    diffusion_policy, observe, plan_batch, chunking
):
    policy = diffusion_policy()
    seeds = [100 * env for env in range(3)]

    def fresh():
        return Session(policy, num_envs=3, chunking=chunking, seed=1, plan_batch=plan_batch)

    expected = run(fresh(), policy, observe, range(3))
    session = fresh()
    for tick in range(TICKS):
        rows = [observe(policy, seed + tick) for seed in seeds]
        batch = {key: torch.stack([row[key] for row in rows]) for key in policy.spec.inputs}
        action = session.select_action(batch | {"task": ["push"] * 3})
        assert action.dtype == torch.float32
        assert torch.equal(action, expected[:, tick])


def test_a_fixed_number_of_rows_is_planned_for(echo):
    session = Session(echo, num_envs=5, plan_batch=2)
    batch = {"observation.state": torch.arange(5.0)[:, None]}
    action = session.select_action(batch)
    assert echo.rows == [2, 2, 2]
    assert action[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert session.predict_action_chunk(batch).shape == (5, 4, 3)
    assert echo.rows == [2] * 6


def test_without_it_exactly_those_that_are_due(echo):
    session = Session(echo, num_envs=3)
    session.select_action({"observation.state": torch.zeros(3, 1)})
    session.select_action({"observation.state": torch.zeros(3, 1)})
    assert echo.rows == [3], "the second tick executes the chunk"
    session.begin(1, 99)
    session.select_action({"observation.state": torch.zeros(3, 1)})
    assert echo.rows == [3, 3]


def test_a_chunk_is_planned_again_after_its_action_steps(echo):
    session = Session(echo)
    taken = [
        session.select_action({"observation.state": torch.tensor([[10.0 * t]])}) for t in range(5)
    ]
    assert [action[0, 0].item() for action in taken] == [0, 1, 20, 21, 40]
    assert [action[0, 2].item() for action in taken] == [0, 0, 2, 2, 4], (
        "noise is keyed by the tick"
    )


def test_reset_begins_new_episodes(echo):
    session = Session(echo, num_envs=2)
    batch = {"observation.state": torch.zeros(2, 1)}
    seen = []
    for _ in range(3):
        for _ in range(3):
            action = session.select_action(batch)
        seen += action[:, 1].tolist()
        session.reset()
        assert [history.tick for history in session.histories] == [-1, -1]
    assert len(set(seen)) == 6, "no episode number comes twice"


def test_predict_action_chunk_executes_nothing(echo):
    session = Session(echo)
    plan = session.predict_action_chunk({"observation.state": torch.tensor([[4.0]])})
    assert plan[0, :, 0].tolist() == [4, 5, 6, 7]
    assert session.due(0)
    assert not session.histories[0].actions


def test_what_was_executed_is_remembered(echo):
    session = Session(echo)
    for tick in range(3):
        session.select_action({"observation.state": torch.tensor([[10.0 * tick]])})
    assert [action[0].item() for action in session.histories[0].actions] == [0, 1, 20]


def test_what_a_policy_derives_from_a_frame_comes_back_with_it(echo):
    session = Session(echo, num_envs=2, chunking=RecedingHorizon(1))
    for tick in range(4):
        session.select_action({"observation.state": torch.zeros(2, 1)})
        for env, row in enumerate(echo.seen[-1].frames):
            assert [frame.memo.get("from") for frame in row] == (
                [None, None] if tick == 0 else [(env, tick - 1), None]
            )
            row[-1].memo["from"] = (env, tick)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"task": ["push"]}, r"reads \['observation.state'\].* holds \['task'\]"),
        ({"observation.state": torch.zeros(1)}, r"shape \(2, 1\), got \(1,\)"),
        ({"observation.state": torch.zeros(3, 1)}, r"of 2 environments .* got \(3, 1\)"),
        ({"observation.state": torch.zeros(2, 4)}, r"got \(2, 4\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(echo, batch, message):
    session = Session(echo, num_envs=2)
    with pytest.raises(ValueError, match=message):
        session.select_action(batch)
    assert [history.tick for history in session.histories] == [-1, -1], "and not half observed"


def test_nobody_is_not_driven(echo):
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        Session(echo, num_envs=0)
