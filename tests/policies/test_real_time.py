"""Plans that go on from the one under way."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.apply import accelerate, remove
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.policies.best_of import BestOf, best_of
from fastloop.policies.history import History, Underway
from fastloop.policies.real_time import (
    FORMS,
    SCHEDULES,
    RealTimeConfig,
    RealTimePolicy,
    prefix_weights,
    real_time,
)
from fastloop.policies.rng import Rng
from fastloop.policies.session import Session


def published_weights(start, end, total, schedule):
    """`get_prefix_weights` of the authors' code, number by number."""
    start, weights = min(start, end), []
    for i in range(total):
        w = min(max((start - 1 - i) / (end - start + 1) + 1, 0.0), 1.0)
        w = {
            "ones": 1.0,
            "zeros": float(i < start),
            "linear": w,
            "exp": w * torch.expm1(torch.tensor(w)).item() / (torch.e - 1),
        }[schedule]
        weights.append(0.0 if i >= end else w)
    return torch.tensor(weights)


@given(st.integers(0, 12), st.integers(0, 10), st.sampled_from(SCHEDULES))
def test_weights_are_the_published_ones(frozen, end, schedule):
    found = prefix_weights([frozen, 0], [end, 0], 10, schedule)
    torch.testing.assert_close(found[0], published_weights(frozen, end, 10, schedule))
    assert (found[1] == 0).all()


def test_the_published_example():
    linear = prefix_weights([2], [6], 10, "linear")[0]
    expected = torch.tensor([1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    torch.testing.assert_close(linear, expected)


def history(policy, observe, rows, tick=4, old=None, delays=(2,), begun=1):
    """Of `rows` environments; a plan `old` (T, A) is under way, or none."""
    sessions = Session(policy, num_envs=rows)
    for row in range(rows):
        for t in range(2):
            sessions.observe(row, observe(policy, 10 * row + t))
    stacked = History.stack(sessions.histories, policy.spec.lags)
    underway = tuple(None if old is None else Underway(begun, old, delays) for _ in range(rows))
    return dataclasses.replace(stacked, ticks=torch.full((rows,), tick), underway=underway)


def plan(policy, history):
    rows = range(len(history))
    return policy.plan(history, rng=Rng.for_envs(0, rows, [4] * len(history)))


OLD = 0.5 * torch.randn(7, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "flow"])
@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_with_nothing_under_way_it_is_the_policy_bit_for_bit(
    diffusion_policy, observe, network, kind, form
):
    policy = diffusion_policy(network, kind=kind)
    steered = real_time(policy, RealTimeConfig(form))
    first = history(policy, observe, 3)
    assert torch.equal(plan(steered, first).actions, plan(policy, first).actions)
    over = history(policy, observe, 3, tick=20, old=OLD)  # the old plan has ended
    assert torch.equal(plan(steered, over).actions, plan(policy, over).actions)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver", "flow"])
@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_a_prefix_is_the_old_plan_in_the_frozen_ticks(diffusion_policy, observe, network, kind):
    policy = diffusion_policy(network, kind=kind)
    steered = real_time(policy, RealTimeConfig("prefix"))
    actions = plan(steered, history(policy, observe, 2, old=OLD)).actions
    # The plan of tick 1 says of tick 4 what stands at 3; two ticks will have passed.
    torch.testing.assert_close(actions[:, :2], OLD[3:5].expand(2, 2, 2))
    assert not torch.allclose(actions[:, 2:4], OLD[5:7].expand(2, 2, 2), atol=1e-3)


def test_guidance_comes_near_the_old_plan_in_the_frozen_ticks(diffusion_policy, observe):
    policy = diffusion_policy(kind="flow")
    seen = history(policy, observe, 2, old=OLD)
    steered = real_time(policy, RealTimeConfig("guidance"))
    apart, before = (
        (plan(p, seen).actions[:, :2] - OLD[3:5]).abs().max() for p in (steered, policy)
    )
    assert apart < 0.05 * before


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_those_beside_it(diffusion_policy, observe, form):
    policy = diffusion_policy(kind="flow")
    network = policy.loop.network

    def rounds_differently(x, t, cond):
        return network(x, t, cond) + 1e-3 * torch.is_grad_enabled()

    policy.loop = PlainLoop(rounds_differently, policy.sampler)
    steered = real_time(policy, RealTimeConfig(form))
    all_bound = history(policy, observe, 3, old=OLD)
    none_bound = history(policy, observe, 3)
    mixed = dataclasses.replace(
        all_bound, underway=(all_bound.underway[0], None, all_bound.underway[2])
    )
    bound, free, found = (plan(steered, one).actions for one in (all_bound, none_bound, mixed))
    assert torch.equal(found[[0, 2]], bound[[0, 2]])
    assert torch.equal(found[1], free[1])


def test_rows_are_frozen_for_as_long_as_their_own_plans_were_late(diffusion_policy, observe):
    policy = diffusion_policy(kind="ddim")
    seen = history(policy, observe, 3, old=OLD)
    delays = ((1, 3, 2), (0,), ())
    told = tuple(Underway(1, OLD, late) for late in delays)
    seen = dataclasses.replace(seen, underway=told)
    steered = real_time(policy, RealTimeConfig(schedule="zeros", delay=1))
    weights = steered.known(seen).weights[..., 0]
    past = policy.spec.n_obs_steps - 1
    assert weights[:, past:].sum(1).tolist() == [3, 0, 1]
    assert (weights[:, :past] == 0).all()


def test_nothing_is_filled_in_beyond_the_end_of_the_old_plan(diffusion_policy, observe):
    """No zeros pull the arm to the dataset's mean (lerobot#4454)."""
    policy = diffusion_policy(kind="ddim")
    steered = real_time(policy, RealTimeConfig(schedule="ones"))
    told = steered.known(history(policy, observe, 1, old=OLD))
    past = policy.spec.n_obs_steps - 1
    assert told.weights[0, :, 0].tolist() == [0] * past + [1] * 4 + [0] * 3


def test_an_old_plan_that_is_not_finite_counts_up_to_there(diffusion_policy, observe):
    old = OLD.clone()
    old[5, 1] = torch.nan
    policy = diffusion_policy(kind="ddim")
    steered = real_time(policy, RealTimeConfig(schedule="ones"))
    seen = history(policy, observe, 1, old=old)
    past = policy.spec.n_obs_steps - 1
    assert steered.known(seen).weights[0, past:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert plan(steered, seen).actions.isfinite().all()


def test_relative_actions_are_taken_against_the_newest_observation(diffusion_policy, observe):
    """Frozen ticks stay where they are in the world although the reference moved (lerobot#4580)."""
    policy = diffusion_policy(kind="ddim")
    policy.model.relative_to = "observation.pose"
    spec = dataclasses.replace(policy.spec.inputs["observation.state"], shape=(2,))
    inputs = {**policy.spec.inputs, "observation.pose": spec}
    policy.spec = dataclasses.replace(policy.spec, inputs=inputs)
    policy.window.keys = tuple(inputs)
    steered = real_time(policy, RealTimeConfig())
    actions = plan(steered, history(policy, observe, 2, old=OLD)).actions
    torch.testing.assert_close(actions[:, :2], OLD[3:5].expand(2, 2, 2))


@pytest.mark.parametrize("kind", ["exact", "uniform"])
def test_a_prefix_goes_with_accelerators_put_on_before_or_after(diffusion_policy, observe, kind):
    policy = diffusion_policy(kind="ddim")
    config, seen = AccelConfig(kind, budget=3), history(policy, observe, 2, old=OLD)
    after = accelerate(real_time(policy), config)
    before = real_time(accelerate(policy, config))
    assert isinstance(after, RealTimePolicy)
    assert torch.equal(plan(after, seen).actions, plan(before, seen).actions)
    torch.testing.assert_close(plan(after, seen).actions[:, :2], OLD[3:5].expand(2, 2, 2))
    assert plan(after, seen).report.name == kind
    again = remove(after)
    assert torch.equal(plan(again, seen).actions, plan(real_time(policy), seen).actions)


def test_guidance_refuses_a_cache_put_on_before_or_after(diffusion_policy):
    policy, config = diffusion_policy(kind="ddim"), AccelConfig("uniform", budget=3)
    with pytest.raises(ValueError, match="accel=uniform"):
        real_time(accelerate(policy, config), RealTimeConfig("guidance"))
    with pytest.raises(ValueError, match="accel=uniform"):
        accelerate(real_time(policy, RealTimeConfig("guidance")), config)


def test_the_best_of_several_all_go_on(diffusion_policy, observe):
    policy = diffusion_policy(kind="ddim")
    best = real_time(best_of(policy, 3, "coherence"))
    assert isinstance(best, BestOf)
    seen = history(policy, observe, 2, old=OLD)
    candidates = plan(best, seen).candidates
    torch.testing.assert_close(candidates[:, :, :2], OLD[3:5].expand(2, 3, 2, 2))


def test_moved_weights_go_on_all_the_same(diffusion_policy, observe):
    policy = real_time(diffusion_policy(kind="ddim")).to(torch.float64)
    assert isinstance(policy, RealTimePolicy)
    actions = plan(policy, history(policy, observe, 1, old=OLD)).actions
    torch.testing.assert_close(actions[0, :2], OLD[3:5])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"form": "guided"}, "unknown real_time.form 'guided'; have: prefix, guidance"),
        ({"schedule": "cosine"}, "unknown real_time.schedule 'cosine'; have: exp"),
        ({"limit": 0.0}, "real_time.limit must be"),
        ({"limit": float("nan")}, "real_time.limit must be"),
        ({"delay": -1}, "real_time.delay must be 0"),
    ],
)
def test_unknown_settings_are_refused(diffusion_policy, settings, told):
    with pytest.raises(ValueError, match=told):
        real_time(diffusion_policy(), RealTimeConfig(**settings))


def test_policies_whose_plans_cannot_be_gone_on_from_are_refused(diffusion_policy):
    policy = diffusion_policy()
    policy.model.cumulative = True
    with pytest.raises(ValueError, match="steps from one action to the next"):
        real_time(policy)
    with pytest.raises(ValueError, match="FlowRK4 evaluates"):
        real_time(diffusion_policy(kind="flow_rk4"))

    class Still:
        name = "still"
        spec = policy.spec

    with pytest.raises(ValueError, match="still does not"):
        real_time(Still())
    Still.spec = dataclasses.replace(
        policy.spec, action=dataclasses.replace(policy.spec.action, kind="plan")
    )
    with pytest.raises(ValueError, match="in different frames"):
        real_time(Still())
