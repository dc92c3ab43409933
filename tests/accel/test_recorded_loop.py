"""A cached loop whose chain is recorded: on a CPU by a fake, on a GPU as a CUDA graph."""

import copy

import pytest
import torch

from fastloop.accel.apply import accelerate
from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.config import AccelConfig, PredictorConfig
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.graph import CudaRecorder, recording
from fastloop.accel.report import AccelReport

GUARDED = PredictorConfig("taylor1", guard=1e-3)


def plan_of(stack, steps=12, predictor=None, every=4):
    updates = [tuple(range(0, steps, every + i % 3)) for i in range(len(stack.branches))]
    predictor = predictor or PredictorConfig()
    return CachePlan(steps, tuple(stack.branches), tuple(updates), Provenance("bac", 1), predictor)


@pytest.fixture
def recorder(fake_recorder):
    return fake_recorder()


@pytest.mark.parametrize("predictor", [None, GUARDED])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver", "flow", "flow_rk4"])
def test_a_replayed_chain_is_the_chain(toy_stack, ddpm, chunk, recorder, kind, predictor):
    sampler = ddpm(3 if kind == "flow_rk4" else 12, kind=kind)
    stack = toy_stack(steps=12)
    plan = plan_of(stack, predictor=predictor)
    plain, recorded = (CachedLoop(stack, sampler, plan, recorder=r) for r in (None, recorder))
    with recording():
        recorded(*chunk(sampler, seed=9))
    for seed in range(3):
        sample, report = recorded(*chunk(sampler, seed=seed))
        expected, told = plain(*chunk(sampler, seed=seed))
        assert torch.equal(sample, expected)
        assert (report.replayed, report.not_replayed, told.replayed) == (1, {}, 0)
        assert int(report.violations) == int(told.violations)
        assert (report.computed, report.reused) == (told.computed, told.reused)
        assert set(report.stage_ms) == {"graph"}
    assert recorder.captured == 1


def test_batch_sizes_do_not_meet(toy_stack, ddpm, chunk, recorder):
    sampler, stack = ddpm(), toy_stack()
    plan = plan_of(stack)
    plain, recorded = (CachedLoop(stack, sampler, plan, recorder=r) for r in (None, recorder))
    kept = {}
    with recording():
        for batch in (1, 3, 2):
            kept[batch] = recorded(*chunk(sampler, batch=batch, seed=batch))[0]
    for batch in (2, 1, 3, 1):
        sample, _ = recorded(*chunk(sampler, batch=batch, seed=10 + batch))
        assert torch.equal(sample, plain(*chunk(sampler, batch=batch, seed=10 + batch))[0])
    for batch, sample in kept.items():
        assert torch.equal(sample, plain(*chunk(sampler, batch=batch, seed=batch))[0])
    assert recorder.captured == 3


def test_what_was_not_prepared_for_runs_step_by_step_and_is_reported(
    toy_stack, ddpm, chunk, recorder
):
    sampler, stack = ddpm(), toy_stack()
    loop = CachedLoop(stack, sampler, plan_of(stack), recorder=recorder)
    with recording():
        loop(*chunk(sampler, batch=1))
    _, known = loop(*chunk(sampler, batch=1))
    _, unknown = loop(*chunk(sampler, batch=4))
    assert recorder.captured == 1
    assert unknown.replayed == 0
    (why,) = unknown.not_replayed
    assert why == "no CUDA graph was prepared for (12, 4, 5, 2) and (4, 2, 3)"
    total = AccelReport.total([known, unknown, unknown])
    assert (total.replayed, total.not_replayed) == (1, {why: 2})


def test_another_plan_is_recorded_anew(toy_stack, ddpm, chunk, recorder):
    sampler, stack = ddpm(), toy_stack()
    with recording():
        for every in (2, 4):
            plan = plan_of(stack, every=every)
            sample, _ = CachedLoop(stack, sampler, plan, recorder=recorder)(*chunk(sampler))
            assert torch.equal(sample, CachedLoop(stack, sampler, plan)(*chunk(sampler))[0])
    assert recorder.captured == 2


def test_another_sampler_knows_nothing_of_the_recording(toy_stack, ddpm, chunk, recorder):
    sampler, stack = ddpm(), toy_stack()
    loop = CachedLoop(stack, sampler, plan_of(stack), recorder=recorder)
    with recording():
        loop(*chunk(sampler))
        other = ddpm(kind="ddim")
        sample, report = loop.with_sampler(other)(*chunk(other))
    assert torch.equal(sample, CachedLoop(stack, other, loop.plan)(*chunk(other))[0])
    assert (report.replayed, recorder.captured) == (0, 1)
    assert loop(*chunk(sampler))[1].replayed == 1, "the loop itself keeps its recording"


def test_a_failed_capture_is_an_answer_all_the_same(toy_stack, ddpm, chunk, fake_recorder):
    sampler, stack = ddpm(), toy_stack()
    broken = fake_recorder(RuntimeError("operation not permitted when stream is capturing"))
    loop = CachedLoop(stack, sampler, plan_of(stack), recorder=broken)
    with recording(), pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        sample, report = loop(*chunk(sampler))
    assert torch.equal(sample, CachedLoop(stack, sampler, loop.plan)(*chunk(sampler))[0])
    (why,) = report.not_replayed
    assert "not permitted when stream is capturing" in why
    assert report.replayed == 0


class ToyPolicy:
    """The smallest thing that can be accelerated."""

    def __init__(self, stack, sampler):
        self._stack, self.sampler, self.digest = stack, sampler, ""
        self.loop = PlainLoop(lambda x, timestep, cond: x, sampler)

    def stack(self, kernels=()):
        return self._stack

    def with_loop(self, loop):
        other = copy.copy(self)
        other.loop = loop
        return other


def test_nothing_is_recorded_on_a_cpu(toy_stack, ddpm, chunk):
    policy = ToyPolicy(toy_stack(), ddpm())
    fast = accelerate(policy, AccelConfig("uniform", budget=3))
    assert fast.loop.fast.graph is None
    with recording():
        _, report = fast.loop(*chunk(policy.sampler))
    assert (report.replayed, report.not_replayed) == (0, {})


@pytest.mark.gpu
@pytest.mark.parametrize("predictor", [None, GUARDED])
def test_a_cuda_graph_of_the_chain_is_the_chain(toy_stack, ddpm, chunk, predictor):
    device = torch.device("cuda", torch.cuda.current_device())
    stack, sampler = toy_stack(), ddpm().to(device, torch.float64)
    for name, value in vars(stack).items():
        if isinstance(value, torch.Tensor):
            setattr(stack, name, value.to(device))
    plan = plan_of(stack, predictor=predictor)
    plain = CachedLoop(stack, sampler, plan)
    recorded = CachedLoop(stack, sampler, plan, recorder=CudaRecorder(device))
    for batch in (1, 3):
        for seed in range(3):
            inputs = [x.to(device) for x in chunk(sampler, batch=batch, seed=seed)]
            with recording():
                sample, report = recorded(*inputs)
            expected, told = plain(*inputs)
            assert (report.replayed, report.not_replayed) == (1, {})
            torch.testing.assert_close(sample, expected, rtol=1e-10, atol=1e-10)
            assert int(report.violations) == int(told.violations)
