from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.block_cache import CachedLoop, CachePlan, Provenance
from fastloop.accel.block_cache.predictor import fit, memory, step_times
from fastloop.accel.block_cache.program import lower
from fastloop.accel.block_cache.reference import reference_loop
from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.config import PREDICTORS, PredictorConfig
from fastloop.accel.samplers import SAMPLERS, SamplerConfig, build_sampler

FORECASTS = [kind for kind in PREDICTORS if kind != "reuse"]


def times(count):
    """Steps that rise, the newest first, with a gap of at least 1 between them."""
    gaps = st.lists(st.integers(1, 9), min_size=count, max_size=count)
    return gaps.map(lambda gaps: [float(t) for t in np.cumsum(gaps)[::-1]])


def forecast(predictor, seen, values, at, until):
    weights = fit(predictor, seen, until)
    return sum(w @ values * at**p for p, w in enumerate(weights))


@given(st.sampled_from(PREDICTORS), st.integers(1, 3).flatmap(times), st.floats(0, 1))
def test_what_stands_still_is_forecast_to(kind, seen, damping):
    seen = seen[: memory(PredictorConfig(kind))]
    predictor = PredictorConfig(kind, damping)
    values = np.full(len(seen), 3.0)
    until = seen[0] + 1
    assert forecast(predictor, seen, values, seen[0] + 4, until) == pytest.approx(3.0)


@given(st.sampled_from(["taylor1", "taylor2", "adams_bashforth"]), st.data())
def test_a_line_is_continued(kind, data):
    seen = data.draw(times(memory(PredictorConfig(kind))))
    values = 2.0 - 0.5 * np.asarray(seen)
    at = seen[0] + data.draw(st.integers(1, 5))
    assert forecast(PredictorConfig(kind), seen, values, at, at) == pytest.approx(2.0 - 0.5 * at)


@given(times(3), st.integers(1, 5))
def test_taylor2_continues_a_parabola_whatever_the_gaps(seen, ahead):
    def parabola(t):
        return 1.0 - 2.0 * t + 0.25 * t**2

    at = seen[0] + ahead
    values = parabola(np.asarray(seen))
    assert forecast(PredictorConfig("taylor2"), seen, values, at, at) == pytest.approx(parabola(at))


def test_adams_bashforth_by_hand():
    # Values 4, 1, 0 at times 2, 1, 0: slopes 3 and 1; their mean from the newest value is
    # 3/2 * 3 - 1/2 * 1 = 4, from the others 1. One step on: 8, 3 and 3.
    values = np.array([4.0, 1.0, 0.0])
    ahead = forecast(PredictorConfig("adams_bashforth"), [2.0, 1.0, 0.0], values, 3.0, 3.0)
    assert ahead == pytest.approx(0.5 * 8 + 0.3 * 3 + 0.2 * 3)


def test_zeus_holds_the_first_reused_step():
    values = np.array([4.0, 1.0])
    for at in (3.0, 7.0):
        assert forecast(PredictorConfig("zeus"), [2.0, 1.0], values, at, 3.0) == pytest.approx(7.0)


@given(st.sampled_from(FORECASTS), st.integers(2, 3).flatmap(times), st.floats(0, 1))
def test_damping_is_a_way_back_to_reuse(kind, seen, damping):
    seen = seen[: memory(PredictorConfig(kind))]
    values, at = np.arange(1.0, len(seen) + 1) ** 2, seen[0] + 2
    full = forecast(PredictorConfig(kind), seen, values, at, at)
    damped = forecast(PredictorConfig(kind, damping), seen, values, at, at)
    assert damped == pytest.approx(values[0] + damping * (full - values[0]))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("variable", ["step", "log_snr"])
def test_times_run_from_0_to_1(kind, variable):
    sampler = build_sampler(SamplerConfig(kind, num_inference_steps=3 if "rk4" in kind else 12))
    found = step_times(PredictorConfig(variable=variable), sampler)
    assert (found[0], found[-1], len(found)) == (0, 1, 12)
    assert sorted(set(found)) == found
    assert (np.diff(found, 2).max() < 1e-12) == (variable == "step")


def test_a_single_step_has_a_time():
    sampler = build_sampler(SamplerConfig(num_inference_steps=1))
    assert step_times(PredictorConfig(), sampler) == [0.0]


@st.composite
def plans(draw, stack, steps):
    kind = draw(st.sampled_from(PREDICTORS))
    variable = draw(st.sampled_from(["step", "log_snr"]))
    predictor = PredictorConfig(kind, draw(st.floats(0, 1)), variable)
    pool = draw(st.lists(st.sets(st.integers(1, steps - 1)), min_size=1, max_size=4))
    updates = [(0, *sorted(draw(st.sampled_from(pool)))) for _ in stack.branches]
    return CachePlan(steps, tuple(stack.branches), tuple(updates), Provenance("bac", 1), predictor)


@given(st.data(), st.booleans())
def test_the_lowered_loop_is_the_obvious_one(toy_stack, ddpm, chunk, data, gated):
    stack, sampler = toy_stack(steps=8, gated=gated), ddpm(steps=8)
    plan = data.draw(plans(stack, 8))
    noise, cond = chunk(sampler)
    sample, _ = CachedLoop(stack, sampler, plan)(noise, cond)
    expected = reference_loop(stack, sampler, plan, noise, cond)
    torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FORECASTS)
def test_fully_damped_it_is_reuse(kind, toy_stack, ddpm, chunk):
    stack, sampler = toy_stack(), ddpm()

    def sample(predictor):
        updates = ((0, 3, 4, 8),) * len(stack.branches)
        plan = CachePlan(12, tuple(stack.branches), updates, Provenance("bac", 1), predictor)
        return CachedLoop(stack, sampler, plan)(*chunk(sampler))[0]

    assert torch.equal(sample(PredictorConfig(kind, damping=0.0)), sample(PredictorConfig()))


@pytest.mark.parametrize("kind", FORECASTS)
def test_a_longer_chain_needs_no_more_memory(kind):
    def slots(steps):
        updates = (tuple(range(0, steps, 4)),) * len(Drift.branches)
        made = Provenance("bac", 1)
        return lower(CachePlan(steps, Drift.branches, updates, made, PredictorConfig(kind))).slots

    assert slots(80) == slots(20)


class Drift:
    """Branches whose values move evenly with the step, whatever the stream is."""

    branches = tuple(Branch(f"layers.{i}.ffn", i, "ffn") for i in range(3))

    def branch(self, i, h, k, ctx):
        return torch.sin(torch.tensor(0.1 * k + i, dtype=torch.float64))

    def add(self, i, h, r, k, ctx):
        return h + r


@pytest.mark.parametrize("kind", FORECASTS)
def test_a_forecast_of_a_smooth_chain_is_nearer_than_reuse(kind):
    stack = Drift()

    def error(predictor):
        updates = (tuple(range(0, 40, 4)),) * len(stack.branches)
        plan = CachePlan(40, stack.branches, updates, Provenance("bac", 1), predictor)
        program, worst = lower(plan), 0.0
        cache = [None] * program.slots
        for k, instructions in enumerate(program.steps):
            h = torch.zeros((), dtype=torch.float64)
            for instruction in instructions:
                h = instruction(h, stack, k, None, cache)
            exact = sum(stack.branch(i, h, k, None) for i in range(len(stack.branches)))
            worst = max(worst, float((h - exact).abs())) if k > 8 else worst
        return worst

    assert error(PredictorConfig(kind)) < 0.8 * error(PredictorConfig())


@given(st.data(), st.sampled_from(PREDICTORS), st.sampled_from([1e-9, 0.3, 1e9]))
def test_a_guard_counts_the_forecasts_that_were_wrong(toy_stack, ddpm, chunk, data, kind, limit):
    """Against the first branch's values as they come out of it, forecast by `fit`."""
    stack, sampler = toy_stack(steps=8), ddpm(steps=8)
    predictor = PredictorConfig(kind, guard=limit)
    updates = data.draw(st.sets(st.integers(1, 7)).map(lambda steps: (0, *sorted(steps))))
    plan = CachePlan(8, tuple(stack.branches), (updates,) * 6, Provenance("bac", 1), predictor)
    values, branch = {}, stack.branch

    def watched(i, h, k, ctx):
        value = branch(i, h, k, ctx)
        if i == 0:
            values[k] = value
        return value

    stack.branch = watched
    sample, report = CachedLoop(stack, sampler, plan)(*chunk(sampler))
    unguarded = replace(plan, predictor=PredictorConfig(kind))
    assert torch.equal(sample, CachedLoop(stack, sampler, unguarded)(*chunk(sampler))[0])

    times, wrong = step_times(predictor, sampler), 0
    for n, k in enumerate(updates):
        if k == 0 or updates[n - 1] == k - 1:
            continue  # nothing was forecast
        kept = updates[:n][::-1][: memory(predictor)]
        weights = fit(predictor, [times[step] for step in kept], times[kept[0] + 1])
        shares = sum(row * times[k] ** p for p, row in enumerate(weights))
        guess = sum(share * values[step] for share, step in zip(shares, kept, strict=True))
        error = (guess - values[k]).abs().mean(dim=(1, 2)) / values[k].abs().mean(dim=(1, 2))
        wrong += bool(error.max() > limit)
    assert int(report.settled().violations) == wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guard": -0.1}, "guard must be a share of 0 or more, got -0.1"),
        ({"kind": "taylor9"}, "unknown predictor 'taylor9'; choose one of reuse, taylor1"),
        ({"variable": "time"}, "unknown predictor variable 'time'; choose one of step, log_snr"),
        ({"damping": 1.5}, "damping must be between 0 and 1, got 1.5"),
    ],
)
def test_a_predictor_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PredictorConfig(**fields)
