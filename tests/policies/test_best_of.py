"""The best of several plans: the same chains, and the right one."""

import copy

import pytest
import torch

from fastloop.accel.apply import AcceleratedLoop, accelerate, remove
from fastloop.accel.config import AccelConfig
from fastloop.accel.report import AccelReport
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf, best_of
from fastloop.policies.driving.planners import make_planner
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.lags import lags as lags_of
from fastloop.policies.rng import Rng
from fastloop.policies.selectors import (
    Coherence,
    Contrast,
    Density,
    Medoid,
    PastConsistency,
    select,
)
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec

FIRST = Density(lambda seen: -torch.arange(seen.allowed.shape[1]).expand(seen.allowed.shape))
LAST = Density(lambda seen: torch.arange(seen.allowed.shape[1]).expand(seen.allowed.shape))


@pytest.fixture
def driven(observe):
    """A function (policy, ticks, envs, **session) -> all plans of environments side by side."""

    def drive(policy, ticks=5, envs=2, **session):
        driver = Session(policy, num_envs=envs, **session)
        plans = []
        for tick in range(ticks):
            for env in range(envs):
                driver.observe(env, observe(policy, 100 * env + tick))
            plans.append(driver.plan(range(envs)))
            for env in range(envs):
                driver.install(env, plans[-1].actions[env])
                driver.act(env)
        return plans

    return drive


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
@pytest.mark.parametrize("accel", ["none", "exact", "uniform"])
@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_one_sample_is_the_plain_policy_bit_for_bit(camera_policy, driven, network, accel, kind):
    policy = camera_policy(network, kind=kind)
    policy = accelerate(policy, AccelConfig(accel, budget=2))
    best = BestOf(policy, PastConsistency(), 1)
    assert isinstance(best, Policy)
    for one, plain in zip(driven(best, 3), driven(policy, 3), strict=True):
        assert torch.equal(one.actions, plain.actions)
        assert torch.equal(one.past_actions, plain.past_actions)
        assert torch.equal(one.candidates[:, 0], plain.actions)
        assert one.t0.tolist() == plain.t0.tolist()
        assert one.dt == plain.dt


@pytest.mark.parametrize("accel", ["none", "exact", "bac"])
@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_candidates_are_the_chains_one_by_one(camera_policy, observe, driven, network, accel):
    policy = camera_policy(network).to(torch.float64)
    history = driven_history(policy, observe, 3)
    rng = Rng.for_envs(4, [0, 1, 2], history.ticks.tolist())
    data = policy.noise(rng).double(), policy.condition(history)
    config = AccelConfig(accel, budget=2, union=1)
    best = accelerate(BestOf(policy, LAST, 4), config, observations=data)
    assert isinstance(best.loop, AcceleratedLoop) == (accel != "none")
    alone = accelerate(policy, config, observations=data)
    plan = best.plan(history, rng=rng)
    assert plan.candidates.shape == (3, 4, 7, 2)
    noises = policy.noises(rng, 4)
    assert torch.equal(noises[:, :, 0], policy.noise(rng))
    assert len({float(noises[0, 0, n, 0, 0]) for n in range(4)}) == 4
    for n in range(4):
        sample, _ = alone.loop(noises[:, :, n].double(), alone.condition(history))
        expected = policy.model.unnormalize_actions(sample, {}).float()
        torch.testing.assert_close(plan.candidates[:, n], expected[:, 1:], rtol=1e-6, atol=1e-6)
    assert plan.chosen.tolist() == [3, 3, 3]
    assert torch.equal(plan.actions, plan.candidates[:, 3])
    assert plan.report.candidates == 4


def driven_history(policy, observe, envs):
    episodes = []
    for env in range(envs):
        episode = EpisodeHistory(policy.spec.horizon)
        for tick in range(2 + env):
            episode.observe(observe(policy, 10 * env + tick))
            episode.acted(torch.randn(2, generator=torch.Generator().manual_seed(tick)))
        episodes.append(episode)
    return History.stack(episodes, policy.spec.lags)


def test_how_many_there_are_does_not_change_the_first(diffusion_policy, observe):
    policy = diffusion_policy().to(torch.float64)
    history = driven_history(policy, observe, 2)
    rng = Rng.for_envs(0, [0, 1], [5, 6])
    few, many = (BestOf(policy, FIRST, n).plan(history, rng=rng) for n in (2, 5))
    torch.testing.assert_close(many.candidates[:, :2], few.candidates)
    plain = policy.plan(history, rng=rng)
    torch.testing.assert_close(many.actions, plain.actions)


@pytest.mark.parametrize("selector", [PastConsistency(), Coherence(), Medoid()])
def test_environments_do_not_see_each_other(diffusion_policy, driven, selector):
    policy = BestOf(diffusion_policy(n_action_steps=1).to(torch.float64), selector, 5)
    together, alone = driven(policy, envs=3), driven(policy, envs=1)
    for many, one in zip(together, alone, strict=True):
        assert many.chosen[0] == one.chosen[0]
        torch.testing.assert_close(many.actions[:1], one.actions)
        torch.testing.assert_close(many.scores[:1], one.scores)
        for env in range(3):
            assert torch.equal(many.actions[env], many.candidates[env, many.chosen[env]])
    assert len({int(chosen) for plan in together for chosen in plan.chosen}) > 1


def test_with_a_fixed_number_of_rows_neighbors_change_no_bit(camera_policy, driven):
    policy = BestOf(camera_policy(n_action_steps=1), PastConsistency(), 3)
    many, few = driven(policy, envs=8, plan_batch=8), driven(policy, envs=2, plan_batch=8)
    for a, b in zip(many, few, strict=True):
        assert torch.equal(a.actions[:2], b.actions[:2])
        assert torch.equal(a.scores[:2], b.scores[:2])


def test_it_says_what_it_did(camera_policy, driven):
    policy = BestOf(camera_policy(n_action_steps=1), PastConsistency(), 3)
    first, second, *_ = driven(policy)
    assert first.report.degraded == {"its past is not known yet": 2}
    assert first.report_of(1).degraded == {"its past is not known yet": 1}
    assert second.report.degraded == second.report_of(0).degraded == {}
    assert first.chosen.tolist() == [0, 0]
    total = AccelReport.total([first.report_of(0), second.report_of(0), first.report_of(0)])
    assert total.degraded == {"its past is not known yet": 2}
    assert (total.candidates, total.plans) == (9, 3)
    assert (total.frames_encoded, total.frames_remembered) == (3, 3)


class Clockwork:
    """A loop whose candidate `true` remembers and plans a known function of absolute time, and
    whose others are off by a tick or more."""

    def __init__(self, lags, horizon, true):
        ahead = torch.arange(horizon - len(lags) + 1)
        self.times = torch.cat([-torch.tensor(lags[:-1]), ahead])
        self.true = true

    def __call__(self, noise, cond):
        rows = noise.shape[1]
        now = cond[:, -1, 0].round().long()  # the newest frame holds the tick
        off = (torch.arange(rows) % 4 - self.true) * 2
        return known(now[:, None] + self.times + off[:, None]), AccelReport()


def known(times):
    """Two elements that never repeat within a hundred ticks, exact in float32."""
    times = times.float()
    return torch.stack([times * times % 101 / 128, times / 64], -1)


@pytest.fixture
def clockwork(diffusion_policy):
    """A function (stride, true, selector) -> a policy of 4 candidates whose plans are `known`."""

    def make(stride, true, selector):
        lags = lags_of(4, stride)
        policy = copy.copy(diffusion_policy(n_obs_steps=4, lags=lags, n_action_steps=2))
        policy.model = copy.deepcopy(policy.model)
        normalizer = policy.model.normalizer
        for key in (*policy.spec.inputs, "action"):
            normalizer.set_identity(key, normalizer.width(key))
        policy.window = type(policy.window)(policy.model, tuple(policy.spec.inputs))
        policy.loop = Clockwork(lags, policy.spec.horizon, true)
        return BestOf(policy, selector, 4)

    return make


def tick_observation(tick):
    return {
        "observation.state": torch.full((3,), float(tick)),
        "observation.environment_state": torch.zeros(4),
    }


@pytest.mark.parametrize("true", [0, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 20])
def test_actions_are_compared_with_those_of_their_own_tick(clockwork, stride, true):
    policy = clockwork(stride, true, PastConsistency())
    session = Session(policy)
    span = policy.spec.lags[0]
    for tick in range(span + 9):
        session.observe(0, tick_observation(tick))
        if session.due(0):
            plan = session.plan([0])
            if tick < span:
                assert plan.chosen.tolist() == [0]
                assert plan.report.degraded
            else:
                assert plan.chosen.tolist() == [true]
                assert plan.scores[0, true] == 0
                assert (plan.scores[0] > 0).sum() == 3
            session.install(0, known(tick + torch.arange(5)))  # what the true one plans
        session.act(0)


def test_a_partial_past_is_enough_where_it_is_wanted(clockwork):
    policy = clockwork(2, 3, PastConsistency(warm_up="partial"))
    session = Session(policy)
    chosen = []
    for tick in range(6):
        session.observe(0, tick_observation(tick))
        chosen += session.plan([0]).chosen.tolist()
        session.install(0, known(tick + torch.arange(5)))
        session.act(0)
    assert chosen == [0, 0, 3, 3, 3, 3], "the newest past action is 2 ticks old"


@pytest.mark.parametrize("late", [0, 1])
def test_coherence_goes_on_with_the_plan_under_way(clockwork, late):
    policy = clockwork(1, 2, Coherence())
    session = Session(policy)
    for tick in range(8):
        session.observe(0, tick_observation(tick))
        if session.due(0):
            plan = session.plan([0])
            assert plan.chosen.tolist() == ([2] if tick else [0])
            assert tick == 0 or plan.scores[0, 2] == 0
            if tick and late:  # the world goes on while it is made
                session.act(0)
                session.observe(0, tick_observation(tick + 1))
                session.install(0, known(tick + torch.arange(5)), late=1)
                session.act(0)
                break
            session.install(0, known(tick + torch.arange(5)))
        session.act(0)
    if late:
        session.observe(0, tick_observation(4))
        plan = session.plan([0])
        assert plan.chosen.tolist() == [2]
        assert plan.scores[0, 2] == 0


def test_actions_handed_out_ahead_are_of_their_own_ticks(clockwork):
    """As the runner does it: all actions until the next plan, before the ticks are observed."""
    policy = clockwork(1, 1, Coherence())
    session = Session(policy)
    session.observe(0, tick_observation(0))
    session.install(0, known(torch.arange(5)))
    for tick in range(2):
        session.act(0)
        session.observe(0, tick_observation(tick + 1))
    plan = session.plan([0])
    assert plan.scores[0, 1] == 0
    for _ in range(2):
        session.act(0)  # this plan will be two ticks late
    session.install(0, known(2 + torch.arange(5)), late=2)
    session.act(0)
    for tick in range(3, 6):
        session.observe(0, tick_observation(tick))
    plan = session.plan([0])
    assert plan.chosen.tolist() == [1]
    assert plan.scores[0, 1] == 0


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_candidate_that_is_not_finite_is_not_executed(clockwork, broken):
    policy = clockwork(1, 1, PastConsistency())
    loop = policy.loop

    def breaks(noise, cond):
        sample, report = loop(noise, cond)
        sample[1 if len(sample) == 4 else 0, -1, 0] = broken
        return sample, report

    policy = policy.with_loop(breaks)
    session = Session(policy)
    for tick in range(5):
        session.observe(0, tick_observation(tick))
        plan = session.plan([0])
        assert plan.actions.isfinite().all()
        assert plan.scores[0, 1] == torch.inf
        session.install(0, known(tick + torch.arange(5)))
        session.act(0)
    everything = policy.with_loop(lambda noise, cond: (noise[0] * broken, AccelReport()))
    plan = everything.plan(
        History.stack(session.histories, policy.spec.lags), rng=Rng.for_envs(0, [0], [4])
    )
    assert plan.chosen.tolist() == [0]
    assert plan.report.degraded == {"no candidate is finite": 1}


@pytest.mark.parametrize("cumulative", [False, True])
def test_relative_and_cumulative_actions_are_compared_in_one_frame(
    diffusion_policy, driven, observe, cumulative
):
    """A candidate that is the truth scores 0, whatever the network's actions are relative to."""
    policy = diffusion_policy(n_action_steps=1).to(torch.float64)
    policy.model.relative_to, policy.model.cumulative = "position", cumulative
    policy.model.normalizer.set_identity("position", 2)
    seen = []
    selector = Density(lambda found: seen.append(found) or torch.zeros(found.allowed.shape))
    history = driven_history(policy, observe, 2)
    for row in history.frames:
        for place, frame in enumerate(row):
            frame.values["position"] = torch.full((2,), 3.0 + place)
    BestOf(policy, selector, 3).plan(history, rng=Rng.for_envs(0, [0, 1], [1, 2]))
    (found,) = seen
    past = found.compare(found.history.executed((1,), 2).actions.double()[:, None])[:, 0]
    assert torch.equal(found.executed.actions, past)
    again = found.compare(found.actions)
    if cumulative:  # by the step before, so that only whole chunks can be compared; here in units
        assert torch.equal(again, found.actions)
    torch.testing.assert_close(again, found.future, rtol=0, atol=1e-12)
    world = found.history.executed((1,), 2).actions[:, 0].double()
    normal = world if cumulative else (world - 4.0)
    if not cumulative:
        normal = policy.model.normalizer.normalize("action", normal)
    torch.testing.assert_close(found.executed.actions[:, 0], normal)


def test_a_weaker_policy_draws_for_the_same_history(diffusion_policy, driven):
    policy = diffusion_policy(n_action_steps=1)
    asked = []

    def weak(history, rng):
        asked.append((history.ticks.tolist(), rng))
        return BestOf(policy, Medoid(), 2).plan(history, rng=rng).candidates

    plans = driven(BestOf(policy, Contrast(weak), 4), ticks=3)
    assert [ticks for ticks, _ in asked] == [[0, 0], [1, 1], [2, 2]]
    assert all(not plan.report.degraded for plan in plans)


def test_an_accelerator_goes_on_and_off(diffusion_policy, driven):
    policy = BestOf(diffusion_policy(), Medoid(), 3)
    before = driven(policy)
    fast = accelerate(policy, AccelConfig("uniform", budget=2))
    assert isinstance(fast, BestOf)
    assert all(plan.report.reused for plan in driven(fast))
    off = remove(fast)
    assert all(
        torch.equal(a.candidates, b.candidates) for a, b in zip(driven(off), before, strict=True)
    )
    assert remove(policy) is policy
    assert fast.to(torch.float64).policy.loop is not fast.policy.loop
    assert (fast.digest, fast.sampler) == (policy.digest, policy.sampler)


def test_what_cannot_be_is_refused(diffusion_policy):
    policy = diffusion_policy()
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        BestOf(policy, Medoid(), 0)
    with pytest.raises(ValueError, match="samples must be at least 1, got -1"):
        best_of(policy, -1, "medoid")
    with pytest.raises(ValueError, match="unknown selector 'luck'; choose one of past,"):
        best_of(policy, 1, "luck")
    short = diffusion_policy(n_obs_steps=1)
    with pytest.raises(ValueError, match="reads 1 observation and predicts none"):
        best_of(short, 3, "past")
    assert best_of(short, 3, "medoid").samples == 3
    assert best_of(policy, 1, "past") is policy


def test_several_of_a_policy_that_does_not_denoise_are_refused():
    state = TensorSpec((16, 6), names=())
    env = EnvSpec(
        "drives", {"observation.ego_states": state},
        ActionSpec(2, "waypoint", (-9.0, -9.0), (9.0, 9.0)), 4.0, 1, horizon=20,
    )  # fmt: skip
    planner = make_planner("constant_velocity", env=env)
    with pytest.raises(ValueError, match=r"policy.samples=4 needs a policy that denoises; .*=1"):
        best_of(planner, 4, "medoid")


def test_select_is_what_a_plan_was_chosen_by(diffusion_policy, driven):
    seen = []

    class Watched(Medoid):
        def score(self, candidates):
            seen.append(candidates)
            return super().score(candidates)

    plans = driven(BestOf(diffusion_policy(), Watched(), 4))
    for candidates, plan in zip(seen, plans, strict=True):
        assert torch.equal(select(Medoid(), candidates).scores, plan.scores)
        assert torch.equal(candidates.actions, plan.candidates)
