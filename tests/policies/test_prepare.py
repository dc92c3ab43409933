"""Warm-up and the choice of a thread count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.apply import accelerate
from fastloop.accel.config import AccelConfig
from fastloop.accel.graph import Graph
from fastloop.policies import prepare as module
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.prepare import arriving, example_history, prepare
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec


@pytest.fixture(autouse=True)
def threads():
    """Whatever was chosen is chosen for this test only."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Clocked:
    """A policy whose plan takes as long as the test says for each thread count."""

    def __init__(self, seconds, monkeypatch):
        self.spec = PolicySpec(
            {"state": TensorSpec((2,))}, ActionSpec(1, "none", (0,), (1,)), 1, 4, 2, 10.0
        )
        self.seconds, self.now, self.calls = seconds, 0.0, []
        monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def plan(self, history, *, rng, budget=None):
        count = torch.get_num_threads()
        cold = count not in self.calls
        self.calls.append(count)
        self.now += 100.0 if cold else self.seconds[count]
        assert len(history) == len(rng)


@pytest.mark.parametrize(("seconds", "best"), [({1: 5, 2: 6, 4: 7}, 1), ({1: 7, 2: 5, 4: 6}, 2)])
def test_the_fastest_thread_count_is_set(seconds, best, monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(4), raising=False)
    policy = Clocked(seconds, monkeypatch)
    found = prepare(policy, repeats=2)
    assert found.threads == torch.get_num_threads() == best
    assert found.plan_ms == {count: 1000 * took for count, took in seconds.items()}, (
        "cold calls count"
    )
    assert policy.calls == [1, 2, 4] * 3, "in turns"


def test_a_hopeless_thread_count_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(2), raising=False)
    policy = Clocked({1: 1, 2: 50}, monkeypatch)
    assert prepare(policy, repeats=3).plan_ms == {1: 1000, 2: 50_000}
    assert policy.calls == [1, 2, 1, 2, 1, 1]


def test_a_given_thread_count_is_used(monkeypatch):
    found = prepare(Clocked({2: 1}, monkeypatch), threads=2, batch=3)
    assert found.threads == torch.get_num_threads() == 2
    assert list(found.plan_ms) == [2]


def test_a_negative_thread_count_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"threads must be 0 .* got -1"):
        prepare(Clocked({}, monkeypatch), threads=-1)


def test_nothing_but_the_thread_count_changes(diffusion_policy):
    policy = diffusion_policy()
    weights = {key: value.clone() for key, value in policy.model.state_dict().items()}
    before, loop, state = torch.get_rng_state(), policy.loop, dict(vars(policy))
    prepare(policy, threads=1, repeats=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert policy.loop is loop
    assert vars(policy) == state
    for key, value in policy.model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_an_example_is_in_range():
    spec = PolicySpec(
        inputs={
            "low": TensorSpec((2,), low=3.0, high=4.0),
            "high": TensorSpec((2,), low=-4.0, high=-3.0),
            "free": TensorSpec((2,), "float64"),
            "image": TensorSpec((3, 4, 4), "uint8", 0, 255),
        },
        action=ActionSpec(1, "none", (0,), (1,)),
        n_obs_steps=2,
        horizon=4,
        n_action_steps=2,
        control_hz=10.0,
    )
    history = example_history(spec, batch=3)
    assert len(history) == 3
    assert history["low"].unique().tolist() == [3]
    assert history["high"].unique().tolist() == [-3]
    assert history["free"].dtype == torch.float64
    assert history["image"].shape == (3, 2, 3, 4, 4)
    assert history["image"].dtype == torch.uint8


@given(
    every=st.integers(1, 6),
    older=st.lists(st.integers(1, 12), unique=True, max_size=5),
)
def test_a_timed_plan_does_the_work_of_one_in_the_middle_of_an_episode(every, older):
    """Frames that an earlier plan has read remember what it made of them, the others nothing."""
    lags = (*sorted(older, reverse=True), 0)
    inputs = {"state": TensorSpec((2,))}
    action = ActionSpec(1, "none", (0,), (1,))
    spec = PolicySpec(inputs, action, len(lags), len(lags) + 6, every, 10.0, lags)
    episode, history = EpisodeHistory(13), None
    for tick in range(13 + 4 * every):
        episode.observe({"state": torch.full((2,), float(tick))})
        if tick % every == 0:
            history = History.stack([episode], lags)
            remembered = [bool(frame.memo) for frame in history.frames[0]]
            for frame in history.frames[0]:
                frame.memo["embedding"] = tick
    timed = arriving(history, spec)
    assert [bool(frame.memo) for frame in timed.frames[0]] == remembered
    assert torch.equal(timed["state"], history["state"])
    assert all(frame.memo for frame in history.frames[0]), "what is timed is a copy"


def test_what_is_prepared_for_is_recorded_and_nothing_else(diffusion_policy, fake_recorder):
    recorder = fake_recorder()
    policy = accelerate(diffusion_policy(), AccelConfig("uniform", budget=2))
    policy.loop.fast.graph = Graph(policy.loop.fast.chain, recorder)
    prepare(policy, threads=1, batch=3)
    assert recorder.captured == 1
    for batch, replayed in ((3, 1), (2, 0), (3, 1)):
        rng = Rng.for_envs(0, range(batch), [0] * batch)
        plan = policy.plan(example_history(policy.spec, batch), rng=rng)
        assert plan.report.replayed == replayed
    assert recorder.captured == 1, "nobody who is served waits for a recording"
