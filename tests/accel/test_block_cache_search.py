from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.accel.block_cache import CachedLoop, CachePlan, make_plan
from fastloop.accel.block_cache.allocation import allocate, worth
from fastloop.accel.block_cache.chains import Chains
from fastloop.accel.block_cache.search import refine
from fastloop.accel.block_cache.sensitivity import action_distances
from fastloop.accel.config import PREDICTORS, AccelConfig, PredictorConfig, RefineConfig

BAC = AccelConfig("bac", budget=3, union=2)
CONFIG = RefineConfig(evaluations=60, observations=12, held_out=6)
HELD_OUT = slice(12, None)


@pytest.fixture
def start(toy_stack, ddpm, chunk):
    """A plan, its stack and sampler, and noises and conds of observations."""
    stack, sampler = toy_stack(), ddpm(kind="flow")
    stack.times = 0.05 * stack.times.cumsum(dim=1)  # changes slowly, as in a trained network
    noises, conds = chunk(sampler, batch=18)
    return make_plan(BAC, stack, sampler, (noises, conds)), stack, sampler, noises, conds


@pytest.fixture
def tiny(toy_stack, ddpm, chunk):
    """The same with three branches and four steps, and what is held out seen before."""
    stack, sampler = toy_stack(layers=1, steps=4), ddpm(4)
    noises, conds = (torch.cat([part, part], dim=d) for d, part in enumerate_last(chunk(sampler)))
    plan = make_plan(AccelConfig("uniform", budget=2), stack, sampler)
    return plan, stack, sampler, noises, conds


def enumerate_last(parts):
    """Noises have their observations in the second dimension, conditions in the first."""
    return zip((1, 0), parts, strict=True)


def action_error(plan, stack, sampler, noises, conds):
    exact = make_plan(AccelConfig("exact"), stack, sampler)
    dense, ours = (CachedLoop(stack, sampler, p)(noises, conds)[0] for p in (exact, plan))
    return (dense - ours).square().mean().item()


def all_plans(plan, total):
    """Every plan of `total` updates."""
    free = [(n, k) for n in range(len(plan.branches)) for k in range(1, plan.steps)]
    for chosen in combinations(free, total - len(plan.branches)):
        updates = [
            (0, *sorted(k for n, k in chosen if n == branch)) for branch in range(len(plan.updates))
        ]
        yield replace(plan, updates=tuple(updates))


def test_the_result_costs_the_same_and_is_better_on_what_was_held_out(start):
    plan, stack, sampler, noises, conds = start
    told = []
    found = refine(*start, CONFIG, progress=lambda done, note: told.append((done, note)))
    assert found.plan.computed == plan.computed
    assert found.evaluations == 60
    rest = (noises[:, HELD_OUT], conds[HELD_OUT])
    assert found.before == pytest.approx(action_error(plan, stack, sampler, *rest))
    assert found.after == pytest.approx(action_error(found.plan, stack, sampler, *rest))
    assert found.after < found.before
    assert found.plan.provenance == replace(
        plan.provenance, refined=60, error_before=found.before, error_after=found.after
    )
    assert told[0] == (0, "sensitivity 4/12")
    assert [done for done, _ in told[3:]] == list(range(1, 61))
    assert told[-1][1].endswith(f", {plan.computed} branches computed")


def test_the_seed_decides(start):
    one, two = (refine(*start, CONFIG) for _ in range(2))
    assert one == two
    assert refine(*start, replace(CONFIG, seed=1)).plan.updates != one.plan.updates


def test_a_refined_plan_is_read_back_and_older_ones_still_are(start, tmp_path):
    found = refine(*start, CONFIG)
    found.plan.save(tmp_path / "plan.json")
    assert CachePlan.load(tmp_path / "plan.json") == found.plan
    assert found.plan.provenance.algorithm == "bac"


def test_the_start_is_kept_where_nothing_better_was_found(start):
    plan, *rest = start
    best = refine(plan, *rest, CONFIG).plan
    again = refine(best, *rest, replace(CONFIG, evaluations=1))
    assert again.plan == best
    assert again.before == again.after


def test_a_budget_of_its_own(start):
    for budget in (6, 11, 40, 72):
        found = refine(*start, replace(CONFIG, budget=budget, evaluations=10))
        assert found.plan.computed == budget
    assert found.after == 0


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", PREDICTORS)
def test_any_predictor_and_gates(toy_stack, ddpm, chunk, kind, gated):
    stack, sampler = toy_stack(gated=gated), ddpm(kind="flow")
    stack.times = 0.05 * stack.times.cumsum(dim=1)
    noises, conds = chunk(sampler, batch=18)
    config = AccelConfig("uniform", budget=3, predictor=PredictorConfig(kind, damping=0.5))
    plan = make_plan(config, stack, sampler)
    found = refine(plan, stack, sampler, noises, conds, CONFIG)
    assert found.plan.predictor == plan.predictor
    rest = (noises[:, HELD_OUT], conds[HELD_OUT])
    assert found.after == pytest.approx(action_error(found.plan, stack, sampler, *rest))
    assert found.after <= found.before


@given(st.integers(0, 1000))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_worse_on_what_was_held_out(start, seed):
    plan, stack, sampler, noises, conds = start
    order = torch.randperm(18, generator=torch.Generator().manual_seed(seed))
    config = replace(CONFIG, evaluations=8, observations=1, held_out=17, seed=seed)
    noises, conds = noises[:, order], conds[order]
    found = refine(plan, stack, sampler, noises, conds, config)
    error = action_error(found.plan, stack, sampler, noises[:, 1:], conds[1:])
    assert error == pytest.approx(found.after)
    assert found.after < found.before or found.plan == plan


@pytest.mark.parametrize("total", [4, 6, 9])
def test_a_tiny_instance_is_solved(tiny, total):
    plan, *rest = tiny
    config = RefineConfig(evaluations=400, budget=total, observations=2, held_out=2)
    found = refine(*tiny, config)
    errors = [action_error(p, *rest) for p in all_plans(plan, total)]
    assert found.evaluations <= len(errors)
    assert found.after == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("error", [1e-4, 1e-3, 1e-2])
def test_a_tiny_instance_is_solved_for_an_error(tiny, error):
    plan, *rest = tiny
    config = RefineConfig(evaluations=600, error=error, observations=2, held_out=2)
    found = refine(*tiny, config)
    assert found.after <= error
    assert found.after == pytest.approx(action_error(found.plan, *rest), rel=1e-9)
    fewer = [action_error(p, *rest) for p in all_plans(plan, found.plan.computed - 1)]
    assert not fewer or min(fewer) > error


def test_an_error_is_kept_on_what_was_held_out_too(start):
    _, stack, sampler, noises, conds = start
    computed = []
    for error in (1e-6, 1e-4, 1e-2):
        found = refine(*start, replace(CONFIG, error=error))
        for rows in (slice(0, 12), HELD_OUT):
            data = (noises[:, rows], conds[rows])
            assert action_error(found.plan, stack, sampler, *data) <= error
        computed.append(found.plan.computed)
    assert computed[0] > computed[1] > computed[2]


def test_what_cannot_be_kept_computes_everything(start):
    found = refine(*start, replace(CONFIG, error=1e-300))
    assert found.plan.reused == 0
    assert found.after == 0


def test_without_conditions(start):
    plan, stack, sampler, noises, _ = start
    stack.context = lambda cond: torch.zeros(1, 1, 6, dtype=torch.float64)
    found = refine(plan, stack, sampler, noises, None, replace(CONFIG, evaluations=5))
    assert found.after < found.before


def test_nonsense_is_refused_before_any_work(start, ddpm, toy_stack, chunk):
    plan, stack, sampler, noises, conds = start
    stack.calls = stack.contexts = 0
    for config, message in (
        (replace(CONFIG, budget=5), "5 branch evaluations does not fit 6 branches and 12"),
        (replace(CONFIG, budget=73), "choose 6 to 72"),
        (replace(CONFIG, evaluations=0), "at least 1 evaluation"),
        (replace(CONFIG, held_out=4), "for 12 observations and 4 held out, got 18"),
    ):
        with pytest.raises(ValueError, match=message):
            refine(*start, config)
    exact = make_plan(AccelConfig("exact"), stack, sampler)
    with pytest.raises(ValueError, match="kind exact reuses nothing"):
        refine(exact, stack, sampler, noises, conds, CONFIG)
    with pytest.raises(ValueError, match="held out, got 8"):
        refine(plan, stack, sampler, noises, conds[:8], CONFIG)
    with pytest.raises(ValueError, match="its denoise steps 12, the policy's 8"):
        refine(plan, stack, ddpm(8), noises, conds, CONFIG)
    single, one = ddpm(1), toy_stack(steps=1)
    plan = make_plan(AccelConfig("uniform", budget=1), one, single)
    with pytest.raises(ValueError, match="1 denoise step has nothing to reuse"):
        refine(plan, one, single, *chunk(single, batch=18), CONFIG)
    assert stack.calls == stack.contexts == one.calls == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"evaluations": -1}, "0 or more, got -1"),
        ({"budget": 100, "error": 1e-6}, "refine.budget=100 and refine.error=1e-06 exclude"),
        ({"budget": 0}, "at least 1, got 0"),
        ({"error": 0.0}, "above 0, got 0"),
        ({"error": float("nan")}, "above 0, got nan"),
        ({"held_out": 0}, "some held out: got 32 and 0"),
        ({"evaluations": 0, "error": 1e-6}, "do nothing without a search"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        RefineConfig(**{"evaluations": 10, **wrong})


def test_a_policy_that_is_not_finite_is_refused(start):
    *rest, noises, conds = start
    with pytest.raises(ValueError, match="own chain is not finite"):
        refine(*rest, noises, torch.full_like(conds, torch.nan), CONFIG)


def test_an_interrupt_leaves_everything_usable(start):
    def interrupt(done, note):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(*start, CONFIG, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        refine(*start, replace(CONFIG, error=1e-4), progress=interrupt)
    assert refine(*start, CONFIG) == refine(*start, CONFIG)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", PREDICTORS)
def test_a_chain_taken_up_in_the_middle_is_the_whole_chain(toy_stack, ddpm, chunk, kind, gated):
    stack, sampler = toy_stack(gated=gated), ddpm()
    predictor = PredictorConfig(kind, guard=0.1)
    plan = make_plan(AccelConfig("uniform", predictor=predictor), stack, sampler)
    chains = Chains(plan, stack, sampler, *chunk(sampler))
    random = np.random.default_rng(0)
    near = chains.measure(plan.mask())
    for _ in range(20):
        mask = near.mask.copy()
        mask[random.integers(1, 12), random.integers(0, 6)] ^= True
        ours, theirs = chains.measure(mask, near), chains.measure(mask)
        assert ours.error == theirs.error
        assert [torch.equal(a[0], b[0]) for a, b in zip(ours.states, theirs.states, strict=True)]
        near = ours


@pytest.mark.parametrize("kind", ["ddpm", "dpm_solver", "flow_rk4"])
@pytest.mark.parametrize("gated", [False, True])
def test_sensitivities_are_derivatives(toy_stack, ddpm, chunk, kind, gated):
    """Along the direction of a chain, against finite differences."""
    stack, sampler = toy_stack(gated=gated), ddpm(3 if kind == "flow_rk4" else 12, kind=kind)
    noises, conds = chunk(sampler, batch=1)
    each, whole = action_distances(stack, sampler, noises, conds, seed=3)
    direction = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(3)).double()
    answer, values, exact = stack.branch, {}, make_plan(AccelConfig("exact"), stack, sampler)

    def projected(share, branches, anchor, step):
        """The last sample, where some branches answer a step with a share of an earlier value."""

        def branch(i, h, k, ctx):
            value = values[i, k] = answer(i, h, k, ctx)
            blended = i in branches and k == step
            return value + share * (values[i, anchor] - value) if blended else value

        stack.branch = branch
        sample = CachedLoop(stack, sampler, exact)(noises, conds)[0]
        return (sample * direction).sum().item() / 10**0.5

    for anchor, step in ((0, 1), (2, 5), (3, 11)):
        for n in range(6):
            slope = (projected(1e-6, [n], anchor, step) - projected(0, [n], anchor, step)) / 1e-6
            assert each[n, anchor, step] == pytest.approx(slope**2, rel=1e-3, abs=1e-12)
    assert not each.diagonal(axis1=1, axis2=2).any()
    slopes = [projected(1e-6, [n], 2, 5) - projected(0, [n], 2, 5) for n in range(6)]
    assert whole[2, 5] == pytest.approx((sum(slopes) / 1e-6) ** 2, rel=1e-3)


def test_sensitivities_do_not_depend_on_how_chains_are_batched(start, monkeypatch):
    _, *rest = start
    told = []
    found = action_distances(*rest, progress=lambda *done: told.append(done))
    assert told[-2:] == [(16, 18), (18, 18)]
    monkeypatch.setattr("fastloop.accel.block_cache.sensitivity.ROWS", 18)
    with torch.inference_mode():
        rest[-1] = rest[-1] + 0  # as a policy makes conditions
    for ours, theirs in zip(found, action_distances(*rest), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-18)


def charged(distance, mask):
    """The sum of the distances of reused steps."""
    total = 0.0
    for n, column in enumerate(mask.T):
        anchor = 0
        for k, computed in enumerate(column):
            anchor = k if computed else anchor
            total += distance[n, anchor, k] if anchor != k else 0.0
    return total


def random_distance(seed, n=2, steps=5):
    return np.abs(np.random.default_rng(seed).normal(size=(n, steps, steps)))


@given(st.integers(0, 10_000), st.integers(2, 10))
def test_the_allocation_equals_exhaustive_search(seed, total):
    distance = random_distance(seed)
    found = allocate(distance, total)
    assert found.sum() == total
    assert found[0].all()
    best = np.inf
    for chosen in combinations(range(2, 10), total - 2):
        mask = np.zeros(10, dtype=bool)
        mask[[0, 1, *chosen]] = True
        best = min(best, charged(distance, mask.reshape(5, 2)))
    assert charged(distance, found) == pytest.approx(best, abs=1e-12)


@given(st.integers(0, 10_000))
def test_the_worth_of_an_update_is_what_it_changes(seed):
    distance = random_distance(seed, n=3)
    mask = np.random.default_rng(seed).random((5, 3)) < 0.5
    mask[0] = True
    found = worth(distance, mask)
    assert np.isposinf(found[0]).all()
    for k in range(1, 5):
        for n in range(3):
            without, with_it = mask.copy(), mask.copy()
            without[k, n], with_it[k, n] = False, True
            saved = charged(distance, without) - charged(distance, with_it)
            assert found[k, n] == pytest.approx(saved, abs=1e-12)
