import pytest
import torch

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.kernels.products import OneDnnLinear
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.dit_stack import DiTStack

T, STEPS, L = 6, 5, 3
FORMS = {
    "rotary": {},
    "learned": {"use_rope": False, "use_positional_encoding": True},
    "reversed flow": {"reversed_flow": True},
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def build(form, dtype=torch.float64):
    """A network with weights far from their initialization, its stack, sampler and inputs."""
    torch.manual_seed(0)
    net = DiT(3, T, 10, 32, L, 4, timestep_embed_dim=16, **form).eval().to(dtype)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    config = SamplerConfig("flow", 1, STEPS) if form.get("reversed_flow") else None
    sampler = build_sampler(config or SamplerConfig("ddpm", 50, STEPS))
    sample, cond = torch.randn(4, T, 3, dtype=dtype), torch.randn(4, 2, 5, dtype=dtype)
    return net, DiTStack(net, sampler.timesteps), sampler, sample, cond


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.inference_mode()
def test_the_gated_branches_add_up_to_the_network(form, dtype, tolerance):
    net, stack, sampler, sample, cond = build(form, dtype)
    ctx = stack.context(cond)
    for k, timestep in enumerate(sampler.timesteps):
        h = stack.begin(sample, k, ctx)
        for i in range(len(stack.branches)):
            gate = stack.gate(i, k, ctx)
            assert gate.shape == (4, 1, 32)
            value = stack.branch(i, h, k, ctx)
            added = stack.add(i, h, value, k, ctx)
            torch.testing.assert_close(added, h + gate * value)
            h = added
        expected = net(sample, timestep, cond)
        error = (stack.finish(h, k, ctx) - expected).abs().max() / expected.abs().max()
        assert error <= tolerance
        assert expected.std() > 0.1


def test_branches_are_named_in_the_order_of_execution(form):
    _, stack, *_ = build(form)
    assert [(b.name, b.layer, b.kind) for b in stack.branches] == [
        (f"blocks.{i}.{name}", i, kind)
        for i in range(L)
        for name, kind in (("attn", "sa"), ("mlp", "ffn"))
    ]


@torch.inference_mode()
def test_values_are_those_before_the_gate(form):
    """Doubling the gates of a layer leaves its values as they are."""
    net, stack, sampler, sample, cond = build(form)
    ctx = stack.context(cond)
    before = [(stack.branch(i, stack.begin(sample, 1, ctx), 1, ctx)) for i in (0, 1)]
    gates = [stack.gate(i, 1, ctx) for i in (0, 1)]
    modulation = net.transformer_blocks[0].adaLN_modulation[1]
    for number in (2, 5):
        modulation.weight[number * 32 : (number + 1) * 32] *= 2
        modulation.bias[number * 32 : (number + 1) * 32] *= 2
    stack = DiTStack(net, sampler.timesteps)
    ctx = stack.context(cond)
    for i in (0, 1):
        assert torch.equal(stack.branch(i, stack.begin(sample, 1, ctx), 1, ctx), before[i])
        torch.testing.assert_close(stack.gate(i, 1, ctx), 2 * gates[i])


@torch.inference_mode()
def test_chunks_and_rows_do_not_mix(form):
    _, stack, _, sample, cond = build(form)
    ctx = stack.context(cond)
    whole = stack.branch(1, stack.begin(sample, 2, ctx), 2, ctx)
    stack.context(cond + 1)
    alone = stack.context(cond[2:3])
    row = stack.branch(1, stack.begin(sample[2:3], 2, alone), 2, alone)
    torch.testing.assert_close(row, whole[2:3])


@torch.inference_mode()
def test_observations_and_steps_both_modulate(form):
    _, stack, _, _, cond = build(form)
    ctx, other = stack.context(cond), stack.context(cond + 1)
    for i in range(len(stack.branches)):
        assert not torch.allclose(stack.gate(i, 0, ctx), stack.gate(i, 1, ctx))
        assert not torch.allclose(stack.gate(i, 0, ctx), stack.gate(i, 0, other))


@torch.inference_mode()
def test_updating_every_step_is_the_published_policy(form):
    net, stack, sampler, sample, cond = build(form)
    sampler = sampler.to("cpu", torch.float64)
    noise = torch.randn(sampler.num_noises, *sample.shape, dtype=sample.dtype)
    every = (tuple(range(STEPS)),) * len(stack.branches)
    dense = CachePlan(STEPS, tuple(stack.branches), every, Provenance("uniform", STEPS))
    output, _ = CachedLoop(stack, sampler, dense)(noise, cond)
    expected, _ = PlainLoop(net, sampler)(noise, cond)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_a_reused_value_gets_the_gate_of_its_own_step(form):
    _, stack, sampler, sample, cond = build(form)
    sampler = sampler.to("cpu", torch.float64)
    noise = torch.randn(sampler.num_noises, *sample.shape, dtype=sample.dtype)
    schedules = [(0,), (0, 3), (0, 2, 4)]
    mixed = tuple(schedules[i * i % 3] for i in range(len(stack.branches)))
    plan = CachePlan(STEPS, tuple(stack.branches), mixed, Provenance("bac", 2))
    output, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_the_network_stays_what_it_is_and_the_stack_has_its_weights(form):
    net, _, sampler, sample, cond = build(form)
    kinds = [type(module) for module in net.modules()]
    stack = DiTStack(net.train(), sampler.timesteps)
    assert net.training
    assert not any(module.training for module in stack.net.modules())
    assert [type(module) for module in net.modules()] == kinds
    assert OneDnnLinear in map(type, stack.net.modules())
    ctx, h = stack.context(cond), stack.begin(sample, 0, None)
    before = stack.branch(1, h, 0, ctx)
    net.transformer_blocks[0].mlp[0].weight.mul_(2)
    assert not torch.equal(stack.branch(1, h, 0, ctx), before)
