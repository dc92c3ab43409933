"""Why an episode does not depend on its neighbors: rows of a full batch are independent."""

import pytest
import torch

from fastloop.accel.block_cache import CachedLoop
from fastloop.accel.block_cache.calibrate import make_plan
from fastloop.accel.config import AccelConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

B, T, STEPS = 8, 10, 6


@pytest.mark.parametrize("cached", [False, True])
def test_neither_place_nor_neighbors_change_a_row(cached):
    torch.manual_seed(0)
    net = TransformerForDiffusion(2, 2, T, 2, 18, 8, 4, 256, causal_attn=True)
    net.eval().requires_grad_(False)
    sampler = build_sampler(SamplerConfig("ddpm", 100, STEPS))
    loop = PlainLoop(net, sampler)
    if cached:
        stack = TransformerStack(net, sampler.timesteps)
        plan = make_plan(AccelConfig("uniform", 2), stack, sampler)
        loop = CachedLoop(stack, sampler, plan)

    noise, cond = torch.randn(sampler.num_noises, B, T, 2), torch.randn(B, 2, 18)
    expected, _ = loop(noise, cond)
    order = torch.randperm(B)
    shuffled, _ = loop(noise[:, order], cond[order])
    assert torch.equal(shuffled, expected[order])

    others, conds = torch.randn_like(noise), torch.randn_like(cond)
    others[:, 5], conds[5] = noise[:, 2], cond[2]
    assert torch.equal(loop(others, conds)[0][5], expected[2])
