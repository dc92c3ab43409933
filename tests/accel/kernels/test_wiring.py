"""The compiled kernels inside a whole chain, called as a policy calls them."""

import importlib

import pytest
import torch

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance, runs
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.config import KERNELS, PredictorConfig
from fastloop.accel.kernels.choose import form_of
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion import fused
from fastloop.policies.diffusion.stack import TransformerStack
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

T, K = 7, 6


def build(device, dtype, kind="ddpm", kernels=()):
    torch.manual_seed(0)
    net = TransformerForDiffusion(2, 2, T, 3, 5, 2, 4, 32, causal_attn=True).eval()
    for parameter in net.requires_grad_(False).parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    sampler = build_sampler(SamplerConfig(kind, 2 * K, K)).to(device, dtype)
    noise = torch.randn(sampler.num_noises, 2, T, 2).to(device, dtype)
    cond = torch.randn(2, 3, 5).to(device, dtype)
    stack = TransformerStack(net.to(device, dtype), sampler.timesteps, kernels)
    return stack, sampler, noise, cond


@pytest.mark.parametrize(
    ("kernels", "kind", "predictor"),
    [
        (["attention"], "ddpm", "reuse"),
        (["ffn"], "ddpm", "reuse"),
        (["reused_run"], "ddpm", "reuse"),
        (["reused_run"], "dpm_solver", "taylor2"),
        (list(KERNELS), "ddpm", "taylor1"),
    ],
)
def test_a_chain_with_compiled_kernels_is_the_chain(device, monkeypatch, kernels, kind, predictor):
    used = []

    def compiled(kernel, weight):
        used.append(kernel)
        return importlib.import_module(f"fastloop.accel.kernels.{kernel}.triton_kernels")

    monkeypatch.setattr(fused, "form_of", compiled)
    monkeypatch.setattr(runs, "form_of", compiled)
    stack, sampler, noise, cond = build(device, torch.float32, kind, kernels)
    updates = [(0, 1, 3)] * 3 + [(0, 1, 2)] * 3
    plan = CachePlan(
        K, tuple(stack.branches), tuple(updates), Provenance("bac", 3), PredictorConfig(predictor)
    )
    ends = stack.ends if "reused_run" in kernels else None
    sample, _ = CachedLoop(stack, sampler, plan, ends=ends)(noise, cond)
    assert set(used) == set(kernels)
    wide, exact_sampler, _, _ = build("cpu", torch.float64, kind)
    expected = reference_loop(wide, exact_sampler, plan, noise.double().cpu(), cond.double().cpu())
    torch.testing.assert_close(sample.double().cpu(), expected, rtol=1e-4, atol=1e-4)


def test_kernels_are_compiled_only_where_they_run():
    for kernel in KERNELS:
        assert form_of(kernel, torch.ones(1)).__name__.endswith(".reference")


@pytest.mark.gpu
def test_on_a_gpu_they_are_compiled_for_what_they_compute():
    for kernel in KERNELS:
        for dtype, form in (
            (torch.float32, "triton_kernels"),
            (torch.bfloat16, "triton_kernels"),
            (torch.float64, "reference"),
        ):
            weight = torch.ones(1, device="cuda", dtype=dtype)
            assert form_of(kernel, weight).__name__.endswith(form)
