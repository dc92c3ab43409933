"""The U-Net cut at its live skip against its own forward pass, and what a reused step runs."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastloop.accel.block_cache import CachedLoop
from fastloop.accel.block_cache.calibrate import calibrate, make_plan
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.block_cache.schedule import distances
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.accel.samplers.base import denoise
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.diffusion.unet_stack import UnetStack

STEPS, OBS, WIDTH = 6, 2, 5
COND = {"global_cond_dim": OBS * WIDTH}
CONFIGS = {
    "3 levels": {"down_dims": (8, 16, 24), **COND},
    "3 levels scaled": {"down_dims": (8, 16, 24), **COND, "cond_predict_scale": True},
    "3 levels unconditional": {"down_dims": (8, 16, 24)},
    "3 levels unconditional scaled": {"down_dims": (8, 16, 8), "cond_predict_scale": True},
    "narrowing, one group": {"down_dims": (24, 16, 8), **COND, "n_groups": 1},
    "2 levels": {"down_dims": (16, 8), **COND},
    "4 levels": {"down_dims": (8, 8, 16, 24), **COND, "cond_predict_scale": True},
    "5 levels, wide kernel": {"down_dims": (8, 16, 16, 8, 8), **COND, "kernel_size": 7},
    "kernel 1, narrow embedding": {
        "down_dims": (8, 16, 16),
        **COND,
        "kernel_size": 1,
        "diffusion_step_embed_dim": 4,
    },
}


def build(config, kind="ddpm", dtype=torch.float64, batch=3, horizon=None):
    """A network with weights far from their initialization, its stack, sampler and inputs."""
    torch.manual_seed(0)
    config = {"diffusion_step_embed_dim": 12, "kernel_size": 5, "n_groups": 4} | config
    net = ConditionalUnet1D(2, **config).eval().to(dtype).requires_grad_(False)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    sampler = build_sampler(SamplerConfig(kind, 12, STEPS)).to("cpu", dtype)
    noise = torch.randn(sampler.num_noises, batch, horizon or 3 * net.stride, 2, dtype=dtype)
    cond = torch.randn(batch, OBS, WIDTH, dtype=dtype) if net.global_cond_dim else None
    return net, UnetStack(net, sampler.timesteps), sampler, noise, cond


def published(net, sample, timestep, cond):
    return net(sample, timestep, global_cond=None if cond is None else cond.flatten(1))


def deep_half(net, h):
    """What an input (B, 2 C, T / 2) of the last upward level holds from below."""
    return h[:, : net.up_modules[-1][0].blocks[0].block[0].in_channels // 2]


def deep_cache(net, sampler, noise, cond, updates):
    """DeepCache on the published forward pass: all of it runs, then the deep half is replaced."""
    kept = []

    def replace(module, args):
        h, film = args
        if k in updates:
            kept[:] = [deep_half(net, h)]
        return torch.cat([kept[0], h[:, kept[0].shape[1] :]], dim=1), film

    hook = net.up_modules[-1][0].register_forward_pre_hook(replace)

    def network(step, sample):
        nonlocal k
        k = step
        return published(net, sample, sampler.timesteps[step], cond)

    k = 0
    sample = denoise(sampler, network, noise)
    hook.remove()
    return sample


def schedule(stack, sampler, budget):
    return make_plan(AccelConfig("uniform", budget=budget, force_last=False), stack, sampler)


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_the_branch_adds_up_to_the_network(config, dtype, tolerance, kind):
    net, stack, sampler, noise, cond = build(config, kind, dtype)
    ctx = stack.context(cond)
    for k, timestep in enumerate(sampler.timesteps):
        h = stack.begin(noise[0], k, ctx)
        assert h.shape == (3, noise.shape[2] // 2, 2 * config["down_dims"][1])
        residual = stack.branch(0, h, k, ctx)
        assert residual.shape == h.shape
        output = stack.finish(stack.add(0, h, residual, k, ctx), k, ctx)
        expected = published(net, noise[0], timestep, cond)
        assert expected.std() > 0.1
        assert (output - expected).abs().max() <= tolerance * expected.abs().max()
        shallow = stack.finish(h, k, ctx)
        assert (shallow - expected).abs().max() > 1e-2, "the deep levels must matter here"


@settings(max_examples=25)
@given(
    dims=st.lists(st.sampled_from([8, 16, 24]), min_size=2, max_size=4),
    conditional=st.booleans(),
    scaled=st.booleans(),
    kernel=st.sampled_from([1, 3, 5]),
    halvings=st.integers(1, 3),
    batch=st.integers(1, 3),
    budget=st.integers(1, STEPS),
    kind=st.sampled_from(["ddpm", "ddim", "dpm_solver", "flow"]),
)
def test_a_uniform_plan_is_deep_cache(
    dims, conditional, scaled, kernel, halvings, batch, budget, kind
):
    config = {"down_dims": dims, "cond_predict_scale": scaled, "kernel_size": kernel}
    horizon = halvings * 2 ** (len(dims) - 1)
    net, stack, sampler, noise, cond = build(
        config | (COND if conditional else {}), kind, batch=batch, horizon=horizon
    )
    plan = schedule(stack, sampler, budget)
    sample, report = CachedLoop(stack, sampler, plan)(noise, cond)
    assert (report.computed, report.reused) == (budget, STEPS - budget)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)
    expected = deep_cache(net, sampler, noise, cond, plan.updates[0])
    torch.testing.assert_close(sample, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=25)
@given(
    timesteps=st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=4),
    cond=st.lists(st.floats(-20, 20, width=32), min_size=OBS * WIDTH, max_size=OBS * WIDTH),
    scaled=st.booleans(),
    conditional=st.booleans(),
)
def test_the_film_table_is_what_every_block_is_told(timesteps, cond, scaled, conditional):
    """In float64; the condition encoders of the network itself say what they were told."""
    config = {"down_dims": (8, 16, 24), "cond_predict_scale": scaled}
    net, _, _, noise, _ = build(config | (COND if conditional else {}), batch=1)
    timesteps = torch.tensor(timesteps)
    cond = torch.tensor(cond).double().reshape(1, OBS, WIDTH) if conditional else None
    stack = UnetStack(net, timesteps)
    ctx = stack.context(cond)
    told = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: told.append(output))
        for name, module in net.named_modules()
        if name.endswith("cond_encoder")
    ]
    for k, timestep in enumerate(timesteps):
        told.clear()
        published(net, noise[0], timestep, cond)
        assert len(told) == len(hooks) == 12
        rows = [row for part in range(3) for row in stack.film.rows(part, k, ctx)]
        for row, expected in zip(rows, told, strict=True):
            torch.testing.assert_close(row[..., 0], expected, rtol=1e-12, atol=1e-12)


class Watch(TorchDispatchMode):
    """Counts convolutions by the name of their weight, and everything else by its operation."""

    def __init__(self, net):
        super().__init__()
        self.names = {weight.data_ptr(): name for name, weight in net.named_parameters()}
        self.convolutions, self.operations = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("conv1d", "conv_transpose1d"):
            self.convolutions[self.names[args[1].data_ptr()]] += 1
        self.operations[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_deep_levels_do_not_run_on_reused_steps(config):
    net, stack, sampler, noise, cond = build(config)
    loop = CachedLoop(stack, sampler, schedule(stack, sampler, budget=2))
    with Watch(net) as watch:
        loop(noise, cond)
    shallow = ("down_modules.0.", "down_modules.1.0.", "down_modules.1.1.", "final_conv.")
    shallow += (f"up_modules.{len(net.up_modules) - 1}.",)
    weights = {name for name, value in net.named_parameters() if value.dim() == 3}
    assert watch.convolutions == {
        name: STEPS if name.startswith(shallow) else 2 for name in weights
    }
    assert {watch.convolutions[name] for name in weights} == {2, STEPS}
    products = ("linear", "mm", "addmm", "matmul", "bmm", "baddbmm")
    assert sum(watch.operations[name] for name in products) == bool(net.global_cond_dim)
    assert not watch.operations.keys() & {"_local_scalar_dense", "item", "is_nonzero", "nonzero"}


@pytest.mark.parametrize("dims", [(256, 512, 1024), (512, 1024, 2048)])
def test_a_reused_step_keeps_two_sevenths_of_the_work(dims):
    """Multiply-adds for 16 actions of 10 numbers, counted from the shapes of what runs."""

    def count(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() // 2

    with torch.device("meta"):
        net = ConditionalUnet1D(10, global_cond_dim=40, down_dims=dims, kernel_size=5).eval()
        x, cond = torch.zeros(1, 16, 10), torch.zeros(1, 2, 20)
    stack = UnetStack(net, torch.arange(4))
    ctx = stack.context(cond)
    h = stack.begin(x, 0, ctx)
    deep = count(lambda: stack.branch(0, h, 0, ctx))
    shallow = count(lambda: stack.begin(x, 0, ctx)) + count(lambda: stack.finish(h, 0, ctx))
    assert round(shallow / (shallow + deep), 3) == 0.286
    step, film = 2 * 256 * 1024, 4 * sum(dims) * (256 + 40)  # what the table spares
    assert count(lambda: published(net, x, 0, cond)) == shallow + deep + step + film


@torch.inference_mode()
def test_calibration_sees_what_comes_up_from_the_deep_levels():
    net, stack, sampler, noise, cond = build(CONFIGS["3 levels"], batch=1)
    config = AccelConfig("unified", budget=2, metric="relative_l2", force_last=False)
    made = calibrate(stack, sampler, noise, cond, config)
    seen = []
    hook = net.up_modules[-1][0].register_forward_pre_hook(
        lambda module, args: seen.append(deep_half(net, args[0]).flatten())
    )
    denoise(sampler, lambda k, x: published(net, x, sampler.timesteps[k], cond), noise)
    hook.remove()
    expected = distances(torch.stack(seen)[None], "relative_l2").numpy()
    np.testing.assert_allclose(made.distance, expected, rtol=1e-8, atol=1e-10)
    sample, _ = CachedLoop(stack, sampler, made.plan)(noise, cond)
    expected = deep_cache(net, sampler, noise, cond, made.plan.updates[0])
    torch.testing.assert_close(sample, expected, rtol=1e-8, atol=1e-8)


@torch.inference_mode()
def test_nothing_is_left_behind():
    """Steps of two chunks in any order answer as they do alone, and touch no argument."""
    _, stack, _, noise, cond = build(CONFIGS["3 levels scaled"])
    contexts = [stack.context(cond), stack.context(2 * cond)]
    kept = [ctx.clone() for ctx in contexts]

    def answer(k, chunk):
        h = stack.begin(noise[chunk], k, contexts[chunk])
        before = h.clone()
        h = h + stack.branch(0, h, k, contexts[chunk])
        assert torch.equal(h.chunk(2, dim=-1)[1], before.chunk(2, dim=-1)[1])
        return stack.finish(h, k, contexts[chunk])

    calls = [(k, chunk) for k in range(STEPS) for chunk in (0, 1)]
    first = {call: answer(*call) for call in calls}
    for call in reversed(calls):
        assert torch.equal(answer(*call), first[call])
    assert all(map(torch.equal, contexts, kept))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"down_dims": (8,)}, "2 levels or more, this one has 1.*use accel=none"),
        ({"down_dims": (8, 16), "local_cond_dim": 3}, "3 local conditions.*use accel=none"),
    ],
)
def test_a_network_without_a_live_branch_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        UnetStack(ConditionalUnet1D(2, n_groups=4, **config), torch.arange(3))


def test_a_horizon_that_cannot_be_halved_is_refused():
    _, stack, _, _, cond = build(CONFIGS["4 levels"])
    with pytest.raises(ValueError, match="a multiple of 8, got 12"):
        stack.begin(torch.zeros(3, 12, 2).double(), 0, stack.context(cond))


@pytest.mark.parametrize("config", [CONFIGS["2 levels"], CONFIGS["3 levels scaled"]])
def test_the_convolutions_are_those_of_the_network(config):
    """Weights are shared, so that a stack costs the memory of its table only."""
    net, stack, _, noise, cond = build(config)
    ctx = stack.context(cond)
    before = stack.begin(noise[0], 0, ctx)
    nn.init.normal_(net.down_modules[1][1].blocks[1].block[0].weight)
    assert not torch.equal(stack.begin(noise[0], 0, ctx), before)
