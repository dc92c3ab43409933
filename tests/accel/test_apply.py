import copy

import pytest
import torch

from fastloop.accel.apply import accelerate, remove
from fastloop.accel.block_cache import CachedLoop, calibrate
from fastloop.accel.config import AccelConfig, PredictorConfig
from fastloop.accel.denoise import PlainLoop

UNIFORM = AccelConfig("uniform", budget=3)


class ToyPolicy:
    """The smallest thing that can be accelerated."""

    def __init__(self, stack, sampler):
        self._stack, self.sampler, self.digest = stack, sampler, "sha256:ab"
        self.loop = PlainLoop(stack.network(sampler), sampler)

    def stack(self, kernels=()):
        return self._stack

    def with_loop(self, loop):
        other = copy.copy(self)
        other.loop = loop
        return other


@pytest.fixture
def policy(toy_stack, ddpm):
    return ToyPolicy(toy_stack(), ddpm())


def test_the_given_policy_is_not_changed_and_the_new_one_runs_the_plan(policy, chunk):
    fast = accelerate(policy, UNIFORM)
    noise, cond = chunk(policy.sampler)
    assert isinstance(policy.loop, PlainLoop)
    sample, report = fast.loop(noise, cond)
    expected, _ = CachedLoop(policy.stack(), policy.sampler, fast.loop.fast.plan)(noise, cond)
    assert torch.equal(sample, expected)
    assert report.name == "uniform"


def test_it_comes_off_and_goes_on_twice_without_stacking(policy):
    twice = accelerate(accelerate(policy, UNIFORM), UNIFORM)
    assert twice.loop.plain is policy.loop
    assert twice.loop.fast.plan == accelerate(policy, UNIFORM).loop.fast.plan
    assert remove(twice).loop is policy.loop
    assert accelerate(twice, AccelConfig("none")).loop is policy.loop
    assert remove(policy) is policy


def test_the_environment_turns_it_all_off(policy, monkeypatch):
    fast = accelerate(policy, UNIFORM)
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert accelerate(policy, UNIFORM).loop is policy.loop
    assert accelerate(fast, UNIFORM).loop is policy.loop


def test_it_calibrates_on_the_observations_given(policy, chunk):
    config = AccelConfig("bac", budget=3, union=1)
    noises, conds = chunk(policy.sampler, batch=2)
    with pytest.raises(ValueError, match="decided on observations"):
        accelerate(policy, config)
    fast = accelerate(policy, config, observations=(noises, conds))
    expected = calibrate(policy.stack(), policy.sampler, noises, conds, config, digest="sha256:ab")
    assert fast.loop.fast.plan == expected.plan


def test_a_saved_plan_runs_as_it_is(policy, tmp_path):
    path = tmp_path / "plan.json"
    plan = accelerate(policy, UNIFORM).loop.fast.plan
    plan.save(path)
    assert accelerate(policy, AccelConfig("uniform", plan=str(path))).loop.fast.plan == plan
    with pytest.raises(ValueError, match=r"accel=bac was asked for, but .* of kind 'uniform'"):
        accelerate(policy, AccelConfig("bac", plan=str(path)))
    policy.digest = "sha256:cd"
    with pytest.raises(ValueError, match="'sha256:ab', the policy's 'sha256:cd'"):
        accelerate(policy, AccelConfig("uniform", plan=str(path)))


def test_delta_runs_as_its_plan_says(policy, chunk):
    """Computed are steps 0 to 5 and 8 of the first layer, 0, 4 and 6 to 11 of the second."""
    fast = accelerate(policy, AccelConfig("delta", budget=3, force_last=False))
    noise, cond = chunk(policy.sampler)
    policy.stack().calls = 0
    _, report = fast.loop(noise, cond)
    assert policy.stack().calls == report.computed == 3 * (7 + 8)
    assert report.name == "delta"


def test_a_network_that_is_no_stack_says_so(policy, monkeypatch):
    def stack(kernels):
        raise ValueError("block caches need a transformer denoiser, this policy has a U-Net")

    monkeypatch.setattr(policy, "stack", stack)
    with pytest.raises(ValueError, match="need a transformer"):
        accelerate(policy, UNIFORM)


@pytest.mark.parametrize("gated", [False, True])
def test_exact_is_the_policy_and_says_what_it_shares(toy_stack, ddpm, chunk, gated):
    policy = ToyPolicy(toy_stack(gated=gated), ddpm())
    exact = accelerate(policy, AccelConfig("exact"))
    sample, report = exact.loop(*chunk(policy.sampler))
    expected, _ = policy.loop(*chunk(policy.sampler))
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)
    assert (report.name, report.exact, report.reused) == ("exact", True, 0)
    assert report.shared == policy.stack().shared
    report.check_engaged()


def zeus(budget):
    return AccelConfig("zeus", budget=budget, predictor=PredictorConfig("zeus"))


def test_zeus_evaluates_the_network_as_often_as_it_may(toy_stack, ddpm, chunk):
    policy = ToyPolicy(toy_stack(steps=50), ddpm(steps=50, kind="ddim"))
    sample, report = accelerate(policy, zeus(31)).loop(*chunk(policy.sampler))
    assert (report.computed, report.reused) == (31, 19)
    assert policy.stack().calls == 31 * len(policy.stack().branches)
    expected, _ = policy.loop(*chunk(policy.sampler))
    assert not torch.equal(sample, expected)


def test_zeus_with_every_evaluation_is_the_policy(toy_stack, ddpm, chunk):
    policy = ToyPolicy(toy_stack(gated=True), ddpm())
    sample, _ = accelerate(policy, zeus(12)).loop(*chunk(policy.sampler))
    expected, _ = policy.loop(*chunk(policy.sampler))
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)


def test_a_name_is_no_configuration(policy):
    with pytest.raises(TypeError, match=r"such as AccelConfig\(.bac.\), got .uniform."):
        accelerate(policy, "uniform")
