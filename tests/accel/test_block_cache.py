import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.program import Compute, Reuse, Sum, lower
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.denoise import PlainLoop
from fastloop.accel.report import AcceleratorIdleError
from fastloop.accel.samplers import denoise


def plan_of(branches, steps, updates):
    return CachePlan(steps, tuple(branches), tuple(updates), Provenance("bac", 1))


@st.composite
def updates(draw, branches, steps):
    """Any schedules, shared by some branches so that long runs occur."""
    pool = draw(
        st.lists(st.sets(st.integers(1, steps - 1), max_size=4), min_size=1, max_size=branches)
    )
    return [(0, *sorted(draw(st.sampled_from(pool)))) for _ in range(branches)]


class LastUpdate:
    """Branch i adds step + 1 at place i: the stream says what each branch's value is from."""

    def __init__(self, branches):
        self.branches = [Branch(f"layers.{i}.ffn", i, "ffn") for i in range(branches)]

    def add(self, i, h, r, k, ctx):
        return h + r

    def branch(self, i, h, k, ctx):
        assert (h[:i] > 0).all(), "a branch before this one is missing from the stream"
        assert (h[i:] == 0).all(), "a branch after this one is in the stream already"
        return (k + 1) * torch.eye(len(self.branches), dtype=torch.int64)[i]


@given(st.data())
def test_a_program_adds_each_branch_once_in_its_latest_value(data):
    n, steps = data.draw(st.integers(1, 8)), data.draw(st.integers(2, 14))
    stack = LastUpdate(n)
    plan = plan_of(stack.branches, steps, data.draw(updates(n, steps)))
    program = lower(plan)
    cache = [None] * program.slots
    for k, instructions in enumerate(program.steps):
        h = torch.zeros(n, dtype=torch.int64)
        for instruction in instructions:
            h = instruction(h, stack, k, None, cache)
        assert h.tolist() == [1 + max(u for u in schedule if u <= k) for schedule in plan.updates]


def test_a_step_that_reuses_everything_is_one_add():
    stack = LastUpdate(6)
    program = lower(plan_of(stack.branches, 5, [(0,)] * 6))
    assert program.steps[0] == tuple(Compute(i, i) for i in range(6))
    assert program.steps[1] == (Sum((6,), ((0, 1, 2, 3, 4, 5),)), Reuse((6,), 1.0))
    assert program.steps[2:] == tuple((Reuse((6,), k),) for k in (2.0, 3.0, 4.0))


def test_a_sum_is_made_again_from_the_sums_that_still_hold():
    stack = LastUpdate(5)
    program = lower(plan_of(stack.branches, 4, [(0,), (0,), (0, 2), (0,), (0,)]))
    assert program.steps[1] == (Sum((5,), ((0, 1, 2, 3, 4),)), Reuse((5,), 1.0))
    before, after = Sum((5,), ((0, 1),)), Sum((6,), ((3, 4),))
    ends = (before, Reuse((5,), 2.0), Compute(2, 2), after, Reuse((6,), 2.0))
    assert program.steps[2] == ends
    assert program.steps[3] == (Sum((7,), ((5, 2, 6),)), Reuse((7,), 3.0))


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver", "flow", "flow_rk4"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_collapse_changes_nothing(kind, dtype, tolerance, toy_stack, ddpm, chunk):
    # A solver with four evaluations a step has 12 of them in 3 steps.
    sampler = ddpm(steps=3 if kind == "flow_rk4" else 12, dtype=dtype, kind=kind)
    stack = toy_stack(layers=3, dtype=dtype)
    schedules = [(0, 3, 7), (0, 5), (0,), (0, 3, 7), (0, 9), (0, 11), (0, 5), (0,), (0, 1, 2)]
    plan = plan_of(stack.branches, 12, schedules)
    noise, cond = chunk(sampler, dtype=dtype)
    sample, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=tolerance, atol=tolerance)
    dense, _ = PlainLoop(stack.network(sampler), sampler)(noise, cond)
    assert (sample - dense).abs().max() > 1e-3, "nothing was reused, so nothing was tested"


@given(st.data())
def test_collapse_changes_nothing_on_any_plan(toy_stack, ddpm, chunk, data):
    stack, sampler = toy_stack(steps=8), ddpm(steps=8)
    plan = plan_of(stack.branches, 8, data.draw(updates(6, 8)))
    noise, cond = chunk(sampler, batch=data.draw(st.integers(1, 3)))
    sample, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_updating_every_step_is_the_policy_bit_for_bit(dtype, toy_stack, ddpm, chunk):
    stack, sampler = toy_stack(dtype=dtype), ddpm(dtype=dtype)
    noise, cond = chunk(sampler, dtype=dtype)
    loop = CachedLoop(stack, sampler, plan_of(stack.branches, 12, [tuple(range(12))] * 6))
    sample, report = loop(noise, cond)
    expected, _ = PlainLoop(stack.network(sampler), sampler)(noise, cond)
    assert torch.equal(sample, expected)
    assert report.exact
    with pytest.raises(AcceleratorIdleError):
        report.check_engaged()


def test_the_report_counts_what_ran(toy_stack, ddpm, chunk):
    stack, sampler = toy_stack(), ddpm()
    loop = CachedLoop(stack, sampler, plan_of(stack.branches, 12, [(0, 6), (0,)] * 3))
    _, report = loop(*chunk(sampler))
    assert (stack.calls, stack.contexts) == (9, 1)
    assert (report.name, report.exact, report.network_evaluations) == ("bac", False, 12)
    assert (report.computed, report.reused) == (9, 63)
    assert set(report.stage_ms) == {"context", "loop"}
    report.check_engaged()


def test_nothing_passes_between_calls_or_environments(toy_stack, ddpm, chunk):
    stack, sampler = toy_stack(), ddpm()
    loop = CachedLoop(stack, sampler, plan_of(stack.branches, 12, [(0, 6), (0,)] * 3))
    noise, cond = chunk(sampler, batch=3)
    together, _ = loop(noise, cond)
    for env in (2, 0, 1):
        alone, _ = loop(noise[:, env : env + 1], cond[env : env + 1])
        torch.testing.assert_close(alone, together[env : env + 1], rtol=1e-12, atol=1e-12)
    again, _ = loop(noise, cond)
    assert torch.equal(again, together)


def test_an_exception_in_the_middle_leaves_the_loop_usable(toy_stack, ddpm, chunk):
    stack, sampler = toy_stack(), ddpm()
    loop = CachedLoop(stack, sampler, plan_of(stack.branches, 12, [(0, 6), (0,)] * 3))
    expected, _ = loop(*chunk(sampler))
    stack.fail_at = stack.calls + 8
    with pytest.raises(RuntimeError, match="device went away"):
        loop(*chunk(sampler, batch=4, seed=1))
    sample, _ = loop(*chunk(sampler))
    assert torch.equal(sample, expected)


def test_a_plan_for_another_policy_is_refused(toy_stack, ddpm):
    stack = toy_stack()
    plan = plan_of(stack.branches, 12, [(0,)] * 6)
    with pytest.raises(ValueError, match="denoise steps 12, the policy's 10"):
        CachedLoop(stack, ddpm(steps=10), plan)
    with pytest.raises(ValueError, match="branches 6, the policy's 9"):
        CachedLoop(toy_stack(layers=3), ddpm(), plan)


class GuidedStack:
    """Classifier-free guidance: a second row of every environment has no condition."""

    def __init__(self, inner, scale):
        self.inner, self.scale = inner, scale
        self.branches, self.gated, self.shared = inner.branches, inner.gated, inner.shared
        self.branch, self.add = inner.branch, inner.add

    def context(self, cond):
        return self.inner.context(torch.cat([cond, torch.zeros_like(cond)]))

    def begin(self, x, k, ctx):
        return self.inner.begin(torch.cat([x, x]), k, ctx)

    def finish(self, h, k, ctx):
        guided, free = self.inner.finish(h, k, ctx).chunk(2)
        return free + self.scale * (guided - free)


def test_guidance_caches_both_of_its_evaluations(toy_stack, ddpm, chunk):
    """By the solver's step: the second evaluation of a step is no step further."""
    stack, sampler = toy_stack(), ddpm()
    plan = plan_of(stack.branches, 12, [(0, 3, 8), (0, 5), (0, 1), (0,), (0, 3), (0, 11)])
    noise, cond = chunk(sampler)
    sample, _ = CachedLoop(GuidedStack(stack, 2.5), sampler, plan)(noise, cond)

    caches = {}

    def evaluate(which, k, x, cond):
        ctx = stack.context(cond)
        h = stack.begin(x, k, ctx)
        for i, updates in enumerate(plan.updates):
            if k in updates:
                caches[which, i] = stack.branch(i, h, k, ctx)
            h = h + caches[which, i]
        return stack.finish(h, k, ctx)

    def network(k, x):
        guided, free = evaluate("guided", k, x, cond), evaluate("free", k, x, 0 * cond)
        return free + 2.5 * (guided - free)

    torch.testing.assert_close(sample, denoise(sampler, network, noise), rtol=1e-12, atol=1e-12)
