"""Operations counted from a plan against those of a chunk that really runs, and the paper's."""

import pytest
import torch
from torch import nn

from fastloop.accel.block_cache import CachedLoop, make_plan
from fastloop.accel.block_cache.whole import WholeStack
from fastloop.accel.config import AccelConfig, PredictorConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.flops import Flops, count_call, count_stack
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.dit_stack import DiTStack
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.diffusion.unet_stack import UnetStack

O, WIDTH, T, STEPS = 2, 5, 8, 6  # noqa: E741 - the shape letter
PLANS = {
    "exact": AccelConfig("exact"),
    "uniform": AccelConfig("uniform", budget=2),
    "two rates": AccelConfig("uniform", budgets={"ffn": 4}, budget=2),
    "forecast": AccelConfig("uniform", budget=3, predictor=PredictorConfig("taylor2")),
    "bac": AccelConfig("bac", budget=3, union=2),
}


def transformer(**arch):
    net = TransformerForDiffusion(2, 2, T, O, WIDTH, n_layer=2, n_head=2, n_emb=16, **arch)
    return net.eval(), TransformerStack


def unet():
    net = ConditionalUnet1D(
        2, global_cond_dim=O * WIDTH, down_dims=(8, 16, 16), n_groups=4, kernel_size=3
    )
    return FlatCondition(net.eval()), lambda net, timesteps: UnetStack(net.net, timesteps)


def dit():
    return DiT(2, T, O * WIDTH, 16, 2, 2, timestep_embed_dim=8).eval(), DiTStack


class FlatCondition(nn.Module):
    """The U-Net takes its condition as one vector."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, sample, timestep, cond):
        return self.net(sample, timestep, global_cond=cond.flatten(1))


NETWORKS = {
    "decoder": transformer,
    "causal": lambda: transformer(causal_attn=True),
    "encoded condition": lambda: transformer(n_cond_layers=1),
    "unet": unet,
    "dit": dit,
}


@pytest.fixture(params=NETWORKS)
def built(request):
    """A network, its stack, a sampler, the noise and condition of a chunk for three."""
    net, stack_of = NETWORKS[request.param]()
    sampler = build_sampler(SamplerConfig("ddpm", 12, STEPS)).to("cpu", torch.float32)
    noise, cond = torch.randn(sampler.num_noises, 3, T, 2), torch.randn(3, O, WIDTH)
    return net, stack_of(net, sampler.timesteps), sampler, noise, cond


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_counts_what_its_chunk_runs(built, name):
    _, stack, sampler, noise, cond = built
    config = PLANS[name]
    if set(config.budgets) - {branch.kind for branch in stack.branches}:
        config = AccelConfig("uniform", budget=5)
    plan = make_plan(config, stack, sampler, (noise, cond))
    _, ran = count_call(CachedLoop(stack, sampler, plan), noise, cond)
    assert count_stack(stack, noise[0], cond).of(plan) == ran > 0


def test_skipped_evaluations_count_likewise(built):
    _, stack, sampler, noise, cond = built
    whole = WholeStack(stack)
    plan = make_plan(AccelConfig("zeus", budget=3), whole, sampler)
    counted = count_stack(whole, noise[0], cond)
    _, ran = count_call(CachedLoop(whole, sampler, plan), noise, cond)
    assert counted.of(plan) == ran == counted.context + 3 * counted.branches[0]


def test_exact_savings_leave_less_than_the_network_as_published(built):
    net, stack, sampler, noise, cond = built
    _, once = count_call(net, noise[0], sampler.timesteps[0], cond)
    _, chunk = count_call(PlainLoop(net, sampler), noise, cond)
    assert chunk == STEPS * once
    counted = count_stack(stack, noise[0], cond)
    assert counted.of(make_plan(PLANS["exact"], stack, sampler)) < chunk


def test_the_toy_stack(toy_stack, ddpm, chunk):
    sampler, stack = ddpm(), toy_stack()
    noise, cond = chunk(sampler, batch=2)
    products = {"context": 3 * 6, "always": 5 * (2 * 6 + 6 * 2), "branch": 5 * 6 * 6}
    context, always, branch = (2 * 2 * multiplied for multiplied in products.values())
    assert count_stack(stack, noise[0], cond) == Flops(context, always, (branch,) * 6)


@pytest.fixture(scope="module")
def paper():
    """The transformer of the paper's simulated tasks, and the input of one chunk."""
    torch.manual_seed(0)
    net = TransformerForDiffusion(10, 10, 10, 2, 137, n_layer=8, n_head=4, n_emb=256).eval()
    sampler = build_sampler(SamplerConfig("ddpm", 100, 100)).to("cpu", torch.float32)
    noise, cond = torch.randn(sampler.num_noises, 1, 10, 10), torch.randn(1, 2, 137)
    return net, TransformerStack(net, sampler.timesteps), sampler, noise, cond


def test_the_papers_network_costs_what_the_formula_says(paper):
    net, stack, sampler, noise, cond = paper
    E, L, tokens, memory, actions, observed = 256, 8, 10, 3, 10, 2
    sa = 4 * tokens * E**2 + 2 * tokens**2 * E
    ca = 2 * tokens * E**2 + 2 * memory * E**2 + 2 * tokens * memory * E
    ffn = 8 * tokens * E**2
    condition = observed * 137 * E + 8 * memory * E**2
    once = L * (sa + ca + ffn) + condition + 2 * tokens * E * actions
    _, counted = count_call(net, noise[0], sampler.timesteps[0], cond)
    assert counted == 2 * once
    assert 100 * counted == pytest.approx(15.7e9, rel=0.01)
    branches = count_stack(stack, noise[0], cond).branches
    assert branches[:3] == (2 * sa, 2 * (ca - 2 * memory * E**2), 2 * ffn)


def test_bac_at_its_published_setting_costs_at_most_as_much_as_published(paper):
    _, stack, sampler, noise, cond = paper
    plan = make_plan(AccelConfig("bac", budget=10, union=5), stack, sampler, (noise, cond))
    assert count_stack(stack, noise[0], cond).of(plan) <= 2.7e9


def test_a_failure_leaves_attention_as_it_was():
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count_call(lambda: 1 / 0)
    assert torch.backends.mha.get_fastpath_enabled() == before
