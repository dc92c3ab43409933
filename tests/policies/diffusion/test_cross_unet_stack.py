"""The U-Net with cross-attention, branch by branch, against its own forward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.calibrate import calibrate, make_plan
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.cross_unet import CrossAttention, CrossUnet1D
from fastloop.policies.diffusion.cross_unet_stack import CrossUnetStack

STEPS, OBS, WIDTH = 6, 5, 7
DIMS = {"2 levels": (16, 8), "3 levels": (8, 16, 24), "4 levels": (8, 8, 16, 24)}


def build(down_dims, kind="ddpm", dtype=torch.float64, scaled=True):
    """A network with weights far from their initialization, its stack, sampler and inputs."""
    torch.manual_seed(0)
    net = CrossUnet1D(2, WIDTH, OBS, 12, 2, 12, down_dims, n_groups=4, cond_predict_scale=scaled)
    net = net.eval().to(dtype).requires_grad_(False)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    sampler = build_sampler(SamplerConfig(kind, 12, STEPS)).to("cpu", dtype)
    noise = torch.randn(sampler.num_noises, 3, 2 * net.stride, 2, dtype=dtype)
    cond = torch.randn(3, OBS, WIDTH, dtype=dtype)
    return net, CrossUnetStack(net, sampler.timesteps), sampler, noise, cond


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
@torch.inference_mode()
def test_the_branches_add_up_to_the_network(dims, dtype, tolerance, kind, scaled):
    net, stack, sampler, noise, cond = build(dims, kind, dtype, scaled)
    assert [(b.name, b.kind) for b in stack.branches] == [("ca", "ca"), ("deep", "deep")]
    ctx = stack.context(cond)
    for k, timestep in enumerate(sampler.timesteps):
        expected = net(noise[0], timestep, cond)
        assert expected.std() > 0.1
        h = stack.begin(noise[0], k, ctx)
        shallow = stack.finish(h, k, ctx)
        for i in range(2):
            value = stack.branch(i, h, k, ctx)
            assert value.abs().max() > 1e-2
            h = stack.add(i, h, value, k, ctx)
            assert value.shape == h.shape
        output = stack.finish(h, k, ctx)
        assert (output - expected).abs().max() <= tolerance * expected.abs().max()
        assert (shallow - expected).abs().max() > 1e-2


@torch.inference_mode()
def test_each_branch_adds_to_one_half():
    _, stack, _, noise, cond = build(DIMS["3 levels"])
    ctx = stack.context(cond)
    h = stack.begin(noise[0], 0, ctx)
    assert not h.chunk(2, dim=-1)[0].any()
    added, deep = (stack.branch(i, h, 0, ctx).chunk(2, dim=-1) for i in range(2))
    assert not added[0].any()
    assert added[1].any()
    assert deep[0].any()
    assert not deep[1].any()


@settings(max_examples=15, deadline=None)
@given(
    dims=st.lists(st.sampled_from([8, 16]), min_size=2, max_size=4),
    budget=st.integers(1, STEPS),
    kind=st.sampled_from(["ddpm", "ddim", "flow"]),
)
def test_a_uniform_plan_is_the_plain_chain_with_values_held(dims, budget, kind):
    net, stack, sampler, noise, cond = build(dims, kind)
    plan = make_plan(AccelConfig("uniform", budget=budget, force_last=False), stack, sampler)
    sample, report = CachedLoop(stack, sampler, plan)(noise, cond)
    assert (report.computed, report.reused) == (2 * budget, 2 * (STEPS - budget))
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)
    if budget == STEPS:
        plain, _ = PlainLoop(net, sampler)(noise, cond)
        torch.testing.assert_close(sample, plain, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_branches_may_have_schedules_of_their_own():
    _, stack, sampler, noise, cond = build(DIMS["3 levels"])
    plan = CachePlan(STEPS, tuple(stack.branches), ((0, 2, 4), (0, 3)), Provenance("bac", 2))
    sample, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_calibration_makes_a_plan_that_runs():
    _, stack, sampler, noise, cond = build(DIMS["3 levels"])
    made = calibrate(stack, sampler, noise[:, :1], cond[:1], AccelConfig("bac", budget=3))
    assert made.plan.branches == tuple(stack.branches)
    sample, report = CachedLoop(stack, sampler, made.plan)(noise, cond)
    assert report.reused > 0
    assert sample.isfinite().all()


def test_keys_and_values_are_made_once_a_chunk():
    net, stack, sampler, noise, cond = build(DIMS["3 levels"])
    made = []
    for name, module in net.named_modules():
        if isinstance(module, CrossAttention):
            module.key_value.register_forward_hook(lambda *_, name=name: made.append(name))
    plan = make_plan(AccelConfig("uniform", budget=STEPS), stack, sampler)
    CachedLoop(stack, sampler, plan)(noise, cond)
    assert len(made) == len(set(made)) == 3 + 1 + 2


@torch.inference_mode()
def test_nothing_is_left_behind():
    """Steps of two chunks in any order answer as they do alone."""
    _, stack, _, noise, cond = build(DIMS["3 levels"])
    contexts = [stack.context(cond), stack.context(2 * cond)]

    def answer(k, chunk):
        h = stack.begin(noise[chunk], k, contexts[chunk])
        for i in range(2):
            h = h + stack.branch(i, h, k, contexts[chunk])
        return stack.finish(h, k, contexts[chunk])

    calls = [(k, chunk) for k in range(STEPS) for chunk in (0, 1)]
    first = {call: answer(*call) for call in calls}
    for call in reversed(calls):
        assert torch.equal(answer(*call), first[call])


def test_a_network_without_a_live_branch_is_refused():
    with pytest.raises(ValueError, match="2 levels or more, this one has 1"):
        build((8,))
