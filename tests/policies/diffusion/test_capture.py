"""Chains of every network can be recorded as a CUDA graph, and with kernels in place of torch's own
operations they are the same chains."""

import copy
from types import SimpleNamespace

import pytest
import torch

from fastloop.accel.apply import accelerate
from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.block_cache.runs import find_runs
from fastloop.accel.config import KERNELS, AccelConfig, PredictorConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.graph import recording
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.cross_unet import CrossUnet1D
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.policy import STACKS, DiffusionPolicy
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D

T, OBS, D, K = 8, 3, 5, 12
NETWORKS = {
    "transformer": lambda: TransformerForDiffusion(2, 2, T, OBS, D, 2, 4, 32, causal_attn=True),
    "transformer, mixed memory": lambda: TransformerForDiffusion(
        2, 2, T, OBS, D, 2, 4, 32, n_cond_layers=1
    ),
    "transformer, time as token": lambda: TransformerForDiffusion(
        2, 2, T, n_layer=2, n_head=4, n_emb=32, time_as_cond=False
    ),
    "unet": lambda: ConditionalUnet1D(
        2, global_cond_dim=OBS * D, diffusion_step_embed_dim=8, down_dims=[8, 16], n_groups=4
    ),
    "cross unet": lambda: CrossUnet1D(2, D, OBS, 8, 2, 8, [8, 16], n_groups=4),
    "dit": lambda: DiT(2, T, OBS * D, 32, 2, 4, timestep_embed_dim=16),
}
CHAINS = [
    *((name, "ddpm", None) for name in NETWORKS),
    *(("transformer", kind, None) for kind in ("dpm_solver", "flow", "flow_rk4")),
    ("transformer", "ddim", "taylor2"),
]


class Case:
    """A network, its stack and inputs for three environments."""

    def __init__(self, name, kind="ddpm", dtype=torch.float64, device="cpu"):
        torch.manual_seed(0)
        self.net = NETWORKS[name]().eval().requires_grad_(False)
        for parameter in self.net.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        self.net = self.net.to(device, dtype)
        steps = K // 4 if kind == "flow_rk4" else K
        self.sampler = build_sampler(SamplerConfig(kind, 2 * K, steps)).to(device, dtype)
        shape = (self.sampler.num_noises, 3, T, 2)
        self.noise = torch.randn(shape, dtype=torch.float64).to(device, dtype)
        unconditional = "time as token" in name
        cond = None if unconditional else torch.randn(3, OBS, D, dtype=torch.float64)
        self.cond = None if cond is None else cond.to(device, dtype)
        self.digest = ""
        self.loop = PlainLoop(self.net, self.sampler)

    @property
    def model(self):
        return SimpleNamespace(model=self.net)

    stack = DiffusionPolicy.stack

    def with_loop(self, loop):
        other = copy.copy(self)
        other.loop = loop
        return other

    @property
    def inputs(self):
        return self.noise, self.cond


def plan_of(stack, predictor=None):
    """Branches of a layer on schedules of their own, and a long run of reuse at the end."""
    updates = [(0, 1 + i % 3, 5)[: 2 + i % 2] for i in range(len(stack.branches))]
    predictor = PredictorConfig(predictor or "reuse")
    return CachePlan(K, tuple(stack.branches), tuple(updates), Provenance("bac", 2), predictor)


@pytest.mark.parametrize(("name", "kind", "predictor"), CHAINS)
def test_no_step_of_a_chain_waits_for_a_value(name, kind, predictor, without_values):
    case = Case(name, kind)
    stack = case.stack()
    loop = CachedLoop(stack, case.sampler, plan_of(stack, predictor))
    sample, _ = without_values(loop, "chain", *case.inputs)
    assert sample.shape == (3, T, 2)


def exact_plan(stack):
    updates = [tuple(range(K))] * len(stack.branches)
    return CachePlan(K, tuple(stack.branches), tuple(updates), Provenance("exact", K))


def test_the_kernels_references_do_not_wait_either(without_values):
    case = Case("transformer")
    loop = accelerate(case, AccelConfig("uniform", budget=3, kernels=list(KERNELS))).loop.fast
    without_values(loop, "chain", *case.inputs)


class Waits:
    def item(self, x):
        return x.sum().item()

    def branch(self, x):
        return x if x.sum() > 0 else -x

    def nonzero(self, x):
        return x[x > 0]

    def numbers(self, x):
        return x + torch.tensor([1.0, 2.0], device=x.device)

    def elsewhere(self, x):
        return x + torch.ones(2)


@pytest.mark.parametrize("how", ["item", "branch", "nonzero", "numbers", "elsewhere"])
def test_waiting_would_show(how, without_values):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        without_values(Waits(), how, torch.ones(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_replayed_chain_is_the_chain(name, fake_recorder):
    case = Case(name)
    stack = case.stack()
    plan = plan_of(stack)
    loop = CachedLoop(stack, case.sampler, plan, recorder=fake_recorder())
    with recording():
        loop(*case.inputs)
    fresh = [None if x is None else 0.5 * x for x in case.inputs]
    sample, report = loop(*fresh)
    assert report.replayed == 1
    assert torch.equal(sample, CachedLoop(stack, case.sampler, plan)(*fresh)[0])


@pytest.mark.parametrize("predictor", ["reuse", "taylor1", "taylor2", "adams_bashforth"])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver", "flow"])
def test_a_run_of_reused_steps_by_its_kernel_is_the_run(kind, predictor):
    case = Case("transformer", kind)
    stack = case.stack()
    plan = plan_of(stack, predictor)
    loop = CachedLoop(stack, case.sampler, plan, ends=stack.ends)
    assert [(run.first, run.last) for run in loop.fused.runs] == [(4, 5), (6, K)]
    sample, report = loop(*case.inputs)
    expected = reference_loop(stack, case.sampler, plan, *case.inputs)
    torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)
    assert report.reused == plan.reused


def test_the_kernel_runs_the_steps_that_it_is_said_to(monkeypatch):
    case = Case("transformer")
    stack = case.stack()
    loop = CachedLoop(stack, case.sampler, plan_of(stack), ends=stack.ends)
    began, launched = [], []
    begin, kernel = stack.begin, loop.fused.kernel
    monkeypatch.setattr(stack, "begin", lambda x, k, ctx: began.append(k) or begin(x, k, ctx))
    monkeypatch.setattr(
        loop.fused, "kernel", lambda *run: launched.append(run[-2:]) or kernel(*run)
    )
    loop(*case.inputs)
    assert (began, launched) == ([0, 1, 2, 3, 5], [(4, 5), (6, K)])


def test_a_program_without_a_run_has_none():
    stack = Case("transformer").stack()
    loop = CachedLoop(stack, Case("transformer").sampler, exact_plan(stack))
    assert list(find_runs(loop.program)) == []


@pytest.mark.parametrize("kernels", [["attention"], ["ffn"], ["reused_run"], list(KERNELS)])
@pytest.mark.parametrize("accel", ["exact", "uniform", "zeus"])
@pytest.mark.parametrize("name", ["transformer", "transformer, time as token"])
def test_kernels_change_nothing_but_rounding(name, accel, kernels):
    case = Case(name)
    config = AccelConfig(accel, budget=4, kernels=kernels)
    if "reused_run" in kernels and (accel == "zeus" or name != "transformer"):
        with pytest.raises(ValueError, match=r"accel\.kernels has reused_run, which"):
            accelerate(case, config)
        return
    plain = accelerate(case, AccelConfig(accel, budget=4))
    sample, report = accelerate(case, config).loop(*case.inputs)
    expected, told = plain.loop(*case.inputs)
    torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)
    assert (report.computed, report.reused) == (told.computed, told.reused)


@pytest.mark.parametrize("name", ["unet", "cross unet", "dit"])
def test_networks_without_kernels_refuse_them(name):
    with pytest.raises(ValueError, match=r"are for TransformerForDiffusion, this policy has"):
        accelerate(Case(name), AccelConfig("exact", kernels=["ffn"]))


def test_every_network_is_here():
    assert {type(make()) for make in NETWORKS.values()} == set(STACKS)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [[], *([kernel] for kernel in KERNELS), list(KERNELS)])
@pytest.mark.parametrize("accel", ["exact", "uniform"])
def test_a_cuda_graph_with_kernels_answers_what_the_cpu_answers(accel, kernels):
    expected, _ = accelerate(Case("transformer"), AccelConfig(accel, budget=4)).loop(
        *Case("transformer").inputs
    )
    case = Case("transformer", dtype=torch.float32, device="cuda")
    fast = accelerate(case, AccelConfig(accel, budget=4, kernels=kernels))
    with recording():
        fast.loop(*case.inputs)
    sample, report = fast.loop(*case.inputs)
    assert (report.replayed, report.not_replayed) == (1, {})
    torch.testing.assert_close(sample.cpu().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_captured(name):
    case = Case(name, dtype=torch.float32, device="cuda")
    fast = accelerate(case, AccelConfig("uniform", budget=4))
    eager = accelerate(case, AccelConfig("uniform", budget=4, graph=False))
    for rows in (1, 3):
        inputs = [None if x is None else x[..., :rows, :, :] for x in case.inputs]
        with recording():
            fast.loop(*inputs)
        sample, report = fast.loop(*inputs)
        assert (report.replayed, report.not_replayed) == (1, {})
        torch.testing.assert_close(sample, eager.loop(*inputs)[0], rtol=1e-4, atol=1e-4)
