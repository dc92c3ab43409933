import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

T, STEPS = 7, 6
FORMS = {
    "mlp": {"cond_dim": 5, "n_obs_steps": 2},
    "mlp causal": {"cond_dim": 5, "n_obs_steps": 3, "causal_attn": True},
    "mlp unconditional": {"causal_attn": True},
    "encoder": {"cond_dim": 5, "n_obs_steps": 2, "n_cond_layers": 2},
    "encoder causal": {"cond_dim": 5, "n_obs_steps": 3, "n_cond_layers": 1, "causal_attn": True},
    "encoder unconditional": {"n_cond_layers": 1},
    "time as token": {"time_as_cond": False},
    "time as token causal": {"time_as_cond": False, "causal_attn": True},
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def build(form, dtype, kind="ddpm"):
    """A network with weights far from their initialization, its stack, sampler and inputs."""
    torch.manual_seed(0)
    net = TransformerForDiffusion(2, 2, T, n_layer=3, n_head=4, n_emb=32, **form).eval().to(dtype)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    sampler = build_sampler(SamplerConfig(kind, 12, STEPS)).to("cpu", dtype)
    noise = torch.randn(sampler.num_noises, 3, T, 2, dtype=dtype)
    cond = torch.randn(3, form["n_obs_steps"], 5, dtype=dtype) if "cond_dim" in form else None
    return net, TransformerStack(net, sampler.timesteps), sampler, noise, cond


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["ddpm", "flow"])
@torch.inference_mode()
def test_the_branches_add_up_to_the_network(form, dtype, tolerance, kind):
    net, stack, sampler, noise, cond = build(form, dtype, kind)
    ctx = stack.context(cond)
    for k, timestep in enumerate(sampler.timesteps):
        h = stack.begin(noise[0], k, ctx)
        for i in range(len(stack.branches)):
            h = h + stack.branch(i, h, k, ctx)
        expected = net(noise[0], timestep, cond)
        torch.testing.assert_close(
            stack.finish(h, k, ctx), expected, rtol=tolerance, atol=tolerance
        )
        assert expected.std() > 0.1


def test_branches_are_named_in_the_order_of_execution():
    _, decoder, *_ = build(FORMS["mlp"], torch.float32)
    kinds = ("sa", "ca", "ffn")
    assert [b.name for b in decoder.branches] == [
        f"layers.{i}.{k}" for i in range(3) for k in kinds
    ]
    _, encoder, *_ = build(FORMS["time as token"], torch.float32)
    assert [(b.layer, b.kind) for b in encoder.branches] == [
        (i, k) for i in range(3) for k in ("sa", "ffn")
    ]


@pytest.mark.parametrize("norm", ["norm1", "norm2", "norm3"])
def test_every_norm_matters(norm):
    """The parity above would not see a skipped norm if norms did nothing on these weights."""
    net, _, sampler, noise, cond = build(FORMS["mlp"], torch.float64)
    before = net(noise[0], sampler.timesteps[0], cond)
    getattr(net.decoder.layers[1], norm).weight.data.mul_(2)
    assert (net(noise[0], sampler.timesteps[0], cond) - before).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_updating_every_step_is_the_published_policy(form, dtype, tolerance):
    net, stack, sampler, noise, cond = build(form, dtype)
    dense = CachePlan(
        STEPS,
        tuple(stack.branches),
        (tuple(range(STEPS)),) * len(stack.branches),
        Provenance("uniform", STEPS),
    )
    sample, _ = CachedLoop(stack, sampler, dense)(noise, cond)
    expected, _ = PlainLoop(net, sampler)(noise, cond)
    torch.testing.assert_close(sample, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_collapse_changes_nothing(form, dtype, tolerance):
    _, stack, sampler, noise, cond = build(form, dtype)
    schedules = [(0,), (0, 3), (0, 2, 4)]
    plan = CachePlan(
        STEPS,
        tuple(stack.branches),
        tuple(schedules[i * i % 3] for i in range(len(stack.branches))),
        Provenance("bac", 2),
    )
    sample, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=tolerance, atol=tolerance)


def test_the_loop_never_waits_for_a_value_of_the_device(form):
    _, stack, sampler, noise, cond = build(form, torch.float32)
    schedules = ((0, 3),) * len(stack.branches)
    plan = CachePlan(STEPS, tuple(stack.branches), schedules, Provenance("uniform", 2))
    loop = CachedLoop(stack, sampler, plan)
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        loop(noise, cond)
    assert seen & {"addmm", "_linear_pointwise"}
    assert not seen & {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"}


def test_a_stack_keeps_the_weights_that_it_was_built_from():
    net, stack, sampler, noise, cond = build(FORMS["mlp"], torch.float64)
    ctx = stack.context(cond)
    h = stack.begin(noise[0], 0, ctx)
    before = stack.branch(2, h, 0, ctx)
    net.decoder.layers[0].linear1.weight.data.mul_(1.5)
    assert torch.equal(stack.branch(2, h, 0, ctx), before)
    rebuilt = TransformerStack(net, sampler.timesteps)
    assert not torch.allclose(rebuilt.branch(2, h, 0, ctx), before)
