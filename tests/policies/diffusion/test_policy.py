"""The diffusion policy as a pure function from history to plan."""

import pytest
import torch

from fastloop.accel.apply import accelerate, remove
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.policies.base import Policy
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng

KINDS = ["ddpm", "ddim", "dpm_solver", "flow"]


@pytest.fixture
def plan(observe):
    """A function (policy, episodes) -> the plan of their third tick."""

    def decide(policy, episodes=(0, 1, 2)):
        histories = []
        for episode in episodes:
            history = EpisodeHistory(policy.spec.horizon)
            for tick in range(3):
                history.observe(observe(policy, 10 * episode + tick))
            histories.append(history)
        batch = History.stack(histories, policy.spec.lags)
        return policy.plan(batch, rng=Rng.for_envs(0, episodes, batch.ticks.tolist()))

    return decide


@pytest.mark.parametrize("network", ["transformer", "unet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_holds_what_it_says(diffusion_policy, plan, network, kind):
    policy = diffusion_policy(network, kind=kind)
    assert isinstance(policy, Policy)
    made = plan(policy)
    assert made.actions.shape == (3, 7, 2), "T - (O - 1) actions from the newest observation on"
    assert made.past_actions.shape == (3, 1, 2)
    assert made.actions.dtype == torch.float32
    assert made.actions.isfinite().all()
    assert made.dt == pytest.approx(0.1)
    assert made.t0.tolist() == [2, 2, 2]
    assert made.report.network_evaluations == 5
    assert made.report.name == "none"
    assert set(made.report.stage_ms) == {"loop"}


def test_past_actions_are_the_head_of_the_chunk(diffusion_policy, plan):
    policy = diffusion_policy()
    whole = []
    policy.loop = lambda noise, cond: _kept(
        whole, PlainLoop(policy.model.denoise, policy.sampler)(noise, cond)
    )
    made = plan(policy)
    chunk = policy.model.normalizer.unnormalize("action", whole[0])
    assert torch.equal(torch.cat([made.past_actions, made.actions], 1), chunk)


def _kept(kept, result):
    kept.append(result[0])
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_repeats(diffusion_policy, plan, kind):
    policy = diffusion_policy(kind=kind)
    one = plan(policy)
    torch.rand(3)
    assert torch.equal(one.actions, plan(policy).actions)
    assert torch.equal(one.actions, plan(diffusion_policy(kind=kind)).actions)


@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_a_row_does_not_depend_on_its_neighbors(diffusion_policy, plan, network):
    """With 16 rows, see `Session`."""
    policy = diffusion_policy(network)
    episodes = list(range(16))
    expected = plan(policy, episodes).actions
    order = episodes[5:] + episodes[:5]
    assert torch.equal(plan(policy, order).actions, expected[order])
    assert torch.equal(plan(policy, [2] * 16).actions, expected[[2] * 16])
    torch.testing.assert_close(plan(policy, [2]).actions, expected[2:3], rtol=1e-4, atol=1e-4)


def test_observations_and_noise_both_matter(diffusion_policy, observe):
    policy = diffusion_policy()
    plans = []
    for seed, episode in ((0, 0), (1, 0), (0, 1)):
        history = EpisodeHistory(2)
        history.observe(observe(policy, seed))
        rng = Rng.for_envs(0, [episode], [0])
        plans.append(policy.plan(History.stack([history], [1, 0]), rng=rng).actions)
    assert not torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


def test_observations_of_other_precision_are_taken(diffusion_policy, plan, observe):
    policy = diffusion_policy()
    history = EpisodeHistory(2)
    history.observe({key: value.double().numpy() for key, value in observe(policy, 0).items()})
    made = policy.plan(History.stack([history], [1, 0]), rng=Rng.for_envs(0, [0], [0]))
    assert made.actions.dtype == torch.float32


@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_in_double_precision_it_plans_the_same(diffusion_policy, plan, network):
    policy = diffusion_policy(network)
    before = plan(policy).actions
    double = policy.to(torch.float64)
    torch.testing.assert_close(plan(double).actions, before, rtol=1e-4, atol=1e-4)
    assert next(double.model.parameters()).dtype == torch.float64
    assert double.sampler.of_x0.dtype == torch.float64
    assert torch.equal(plan(policy).actions, before), "the policy itself is not touched"
    assert next(policy.model.parameters()).dtype == torch.float32


def test_images_are_seen(diffusion_policy, plan, observe):
    policy = diffusion_policy(images=True)
    made = plan(policy)
    assert made.actions.shape == (3, 7, 2)
    dark = []
    for pixel in (0, 255):
        history = EpisodeHistory(2)
        seen = observe(policy, 0)
        seen["observation.images.top"][:, 8:24] = pixel
        history.observe(seen)
        dark.append(
            policy.plan(History.stack([history], [1, 0]), rng=Rng.for_envs(0, [0], [0])).actions
        )
    assert not torch.equal(*dark)


def test_images_in_lerobots_range_are_the_same_images(diffusion_policy, observe):
    """LeRobot hands over floats in 0..1 where our simulators give bytes."""
    policy = diffusion_policy(images=True)
    plans = []
    for scale in (lambda x: x, lambda x: x.float() / 255):
        history = EpisodeHistory(2)
        seen = observe(policy, 0)
        history.observe({k: scale(v) if "images" in k else v for k, v in seen.items()})
        plans.append(policy.plan(History.stack([history], [1, 0]), rng=Rng.for_envs(0, [0], [0])))
    torch.testing.assert_close(plans[0].actions, plans[1].actions)


@pytest.mark.parametrize("network", ["transformer", "unet"])
@pytest.mark.parametrize("images", [False, True], ids=["state", "images"])
def test_an_accelerator_goes_on_and_off(diffusion_policy, plan, network, images):
    policy = diffusion_policy(network, images=images)
    before = plan(policy).actions
    fast = accelerate(policy, AccelConfig("uniform", budget=2))
    made = plan(fast)
    assert made.report.name == "uniform"
    assert made.report.reused > 0
    assert not torch.equal(made.actions, before)
    assert (made.actions - before).abs().mean() < 0.3 * before.std()
    assert torch.equal(plan(remove(fast)).actions, before)
    assert torch.equal(plan(policy).actions, before)
    assert torch.equal(
        plan(accelerate(fast, AccelConfig("uniform", budget=2))).actions, made.actions
    )
    assert plan(fast.to(torch.float64)).report.name == "none", "its tables were of the old weights"


@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_a_full_budget_is_the_plain_policy(diffusion_policy, plan, network):
    policy = diffusion_policy(network)
    dense = accelerate(policy, AccelConfig("uniform", budget=5))
    torch.testing.assert_close(plan(dense).actions, plan(policy).actions, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["transformer", "unet"])
def test_calibration_on_observations(diffusion_policy, plan, observe, network):
    policy = diffusion_policy(network)
    history = EpisodeHistory(2)
    history.observe(observe(policy, 5))
    batch = History.stack([history, history], [1, 0])
    data = policy.noise(Rng.for_envs(0, [0, 1], [0, 0])), policy.condition(batch)
    assert data[0].shape == (policy.sampler.num_noises, 2, 8, 2)
    assert data[1].shape == (2, 2, 7)
    fast = accelerate(policy, AccelConfig("bac", budget=2, union=1), observations=data)
    assert plan(fast).report.engagement > 0


def test_a_network_that_is_no_stack_of_branches_is_refused(diffusion_policy):
    policy = diffusion_policy()
    policy.model.model = torch.nn.Bilinear(2, 1, 2)
    with pytest.raises(ValueError, match="this policy has Bilinear; use accel=none"):
        accelerate(policy, AccelConfig("uniform"))
    assert accelerate(policy, AccelConfig("none")) is policy


def test_a_unet_without_a_live_skip_is_refused(diffusion_policy):
    policy = diffusion_policy("unet")
    policy.model.model = ConditionalUnet1D(2, global_cond_dim=14, down_dims=(8,), n_groups=4)
    with pytest.raises(ValueError, match="2 levels or more, this one has 1"):
        accelerate(policy, AccelConfig("uniform"))
    assert accelerate(policy, AccelConfig("none")) is policy


def test_a_policy_does_not_train(diffusion_policy):
    policy = diffusion_policy()
    assert not policy.model.training
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
