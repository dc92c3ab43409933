from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from fastloop.accel.block_cache import calibrate, make_plan
from fastloop.accel.block_cache.bubbling import bubbling_union, scheduled_error, volatility
from fastloop.accel.block_cache.calibrate import trace
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.schedule import (
    adaptive_schedules,
    delta_schedules,
    distances,
    uniform_schedule,
)
from fastloop.accel.config import KINDS, METRICS, OBJECTIVES, SCORES, AccelConfig

# The schedules by themselves: the last step is not added to them.
scheduled = partial(AccelConfig, force_last=False)
BAC = scheduled("bac", budget=3, union=2)


@pytest.fixture
def watched(toy_stack, ddpm, chunk):
    """A stack, its sampler, and noises and conds of four observations."""
    sampler = ddpm()
    return toy_stack(), sampler, *chunk(sampler, batch=4)


def test_trace_is_the_uncached_chain(watched):
    stack, sampler, noises, conds = watched
    values = trace(stack, sampler, noises[:, :1], conds[:1])
    assert values.shape == (6, 12, 5 * 6)
    ctx = stack.context(conds[:1])
    h = stack.begin(noises[0, :1], 0, ctx)
    for i in range(6):
        value = stack.branch(i, h, 0, ctx)
        assert torch.equal(values[i, 0], value.flatten())
        h = h + value


@pytest.mark.parametrize("metric", METRICS)
def test_observations_are_averaged(watched, metric):
    stack, sampler, noises, conds = watched
    config = scheduled("bac", budget=3, union=0, metric=metric)
    found = calibrate(stack, sampler, noises, conds, config)
    values = [trace(stack, sampler, noises[:, m : m + 1], conds[m : m + 1]) for m in range(4)]
    for ours, name in ((found.distance, metric), (found.l1, "l1")):
        each = [distances(value, name).numpy() for value in values]
        np.testing.assert_allclose(ours, np.mean(each, axis=0), rtol=1e-12, atol=1e-14)
    assert found.plan.updates == tuple(adaptive_schedules(found.distance, 3))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("score", SCORES)
def test_bac_unites_the_branches_of_the_highest_score(watched, objective, score):
    stack, sampler, noises, conds = watched
    config = scheduled("bac", budget=3, union=2, objective=objective, score=score)
    found = calibrate(stack, sampler, noises, conds, config, digest="d", seeds=(5, 6))
    base = adaptive_schedules(found.distance, 3, objective)
    scores = {
        "volatility": volatility(found.l1),
        "scheduled": scheduled_error(base, stack.branches, found.l1),
    }[score]
    assert found.plan.updates == tuple(bubbling_union(base, stack.branches, scores, 2))
    made = found.plan.provenance
    assert (made.algorithm, made.budget, made.union, made.metric) == ("bac", 3, 2, "cosine")
    assert (made.objective, made.score) == (objective, score)
    assert (made.digest, made.observations, made.seeds) == ("d", 4, (5, 6))
    assert 0 <= made.stability <= 1


def test_the_score_decides(watched):
    one, two = (
        calibrate(*watched, scheduled("bac", budget=3, union=1, score=score)).plan.updates
        for score in SCORES
    )
    assert one != two


def test_kinds_of_branches_have_budgets_of_their_own(watched):
    stack, sampler, noises, conds = watched
    budgets = {"ffn": 2, "sa": 5, "mlp": None}
    found = calibrate(
        stack, sampler, noises, conds, scheduled("bac", budget=3, union=0, budgets=budgets)
    ).plan
    expected = {"sa": 5, "ca": 3, "ffn": 2}
    for branch, updates in zip(found.branches, found.updates, strict=True):
        assert len(updates) == expected[branch.kind]
    uniform = make_plan(scheduled("uniform", budget=3, budgets=budgets), stack, sampler)
    assert uniform.updates[:3] == tuple(uniform_schedule(12, s) for s in (5, 3, 2))
    for plan in (found, uniform):
        assert plan.provenance.budgets == {"ffn": 2, "sa": 5}


def test_a_budget_that_no_branch_has_need_not_fit(watched):
    stack, sampler, _, _ = watched
    config = scheduled("uniform", budget=40, budgets={"sa": 2, "ca": 2, "ffn": 3})
    assert make_plan(config, stack, sampler).updates[2] == (0, 4, 8)


def test_few_observations_are_warned_of(watched, chunk):
    stack, sampler, noises, conds = watched
    few = calibrate(stack, sampler, noises, conds, BAC)
    assert few.warning == "decided on 4 observations, which may be chance; average 8 or more"
    enough = calibrate(stack, sampler, *chunk(sampler, batch=8), BAC)
    assert enough.warning == ""


def test_unified_gives_every_branch_the_schedule_of_the_first(watched):
    stack, sampler, noises, conds = watched
    found = calibrate(stack, sampler, noises, conds, scheduled("unified", budget=4))
    assert set(found.plan.updates) == set(adaptive_schedules(found.distance[:1], 4))
    assert found.plan.provenance.union == 0


def test_equal_halves_are_perfectly_stable_and_one_has_no_halves(watched):
    stack, sampler, noises, conds = watched
    same = calibrate(
        stack, sampler, noises[:, :1].repeat(1, 2, 1, 1), conds[:1].repeat(2, 1, 1), BAC
    )
    assert same.plan.provenance.stability == 1.0
    alone = calibrate(stack, sampler, noises[:, :1], conds[:1], BAC)
    assert alone.plan.provenance.stability is None
    assert alone.plan.updates == same.plan.updates


def test_force_last_adds_the_last_step_to_every_branch(watched):
    stack, sampler, noises, conds = watched
    for kind in ("uniform", "unified", "bac", "delta"):
        config = AccelConfig(kind, budget=3)
        plan = make_plan(config, stack, sampler, (noises, conds))
        plain = make_plan(scheduled(kind, budget=3), stack, sampler, (noises, conds))
        assert plan.updates == tuple(tuple(sorted({*u, 11})) for u in plain.updates)


def test_progress_is_told_after_each_observation(watched):
    told = []
    calibrate(*watched, BAC, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bad_input_is_refused_before_any_work(watched):
    stack, sampler, noises, conds = watched
    with pytest.raises(ValueError, match="40 updates does not fit 12"):
        calibrate(stack, sampler, noises, conds, scheduled("bac", budget=40))
    for kind, (budgets, message) in product(
        ("bac", "uniform"),
        (
            ({"ca": 13}, "13 updates does not fit 12"),
            ({"mlp": 3}, "kind 'mlp', but this network has: sa, ca, ffn"),
        ),
    ):
        config = scheduled(kind, budget=3, budgets=budgets)
        with pytest.raises(ValueError, match=message):
            make_plan(config, stack, sampler, (noises, conds))
    with pytest.raises(ValueError, match="40 updates does not fit 12"):
        make_plan(scheduled("delta", budget=40), stack, sampler)
    with pytest.raises(ValueError, match="noise for 4 and 3 conditions"):
        calibrate(stack, sampler, noises, conds[:3], BAC)
    with pytest.raises(ValueError, match="at least one observation"):
        calibrate(stack, sampler, noises[:, :0], conds[:0], BAC)
    with pytest.raises(ValueError, match="needs no calibration"):
        calibrate(stack, sampler, noises, conds, scheduled("uniform"))
    with pytest.raises(ValueError, match="makes no cache plan"):
        make_plan(scheduled("none"), stack, sampler)
    with pytest.raises(ValueError, match="accel=bac is decided on observations"):
        make_plan(BAC, stack, sampler)
    assert stack.calls == 0


def test_values_that_are_not_finite_name_branch_and_step(watched):
    stack, sampler, noises, conds = watched
    stack.times[4, 7] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.ca is not finite at denoise step 7"):
        calibrate(stack, sampler, noises, conds, BAC)


def test_uniform_needs_no_observation(watched):
    stack, sampler, _, _ = watched
    plan = make_plan(scheduled("uniform", budget=3), stack, sampler, digest="d")
    assert plan.updates == ((0, 4, 8),) * 6
    assert (plan.provenance.algorithm, plan.provenance.digest) == ("uniform", "d")
    assert stack.calls == 0


def test_values_from_observations_that_are_not_finite_are_refused(watched):
    stack, sampler, noises, conds = watched
    conds[2] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.0\.sa is not finite at denoise step 0"):
        calibrate(stack, sampler, noises, conds, BAC)


def test_delta_needs_no_observation_and_is_a_plan_like_any(watched, tmp_path):
    stack, sampler, _, _ = watched
    config = scheduled("delta", budget=3, depth=0.5, boundary=0.25)
    plan = make_plan(config, stack, sampler, digest="d")
    assert plan.updates == tuple(delta_schedules([0, 0, 0, 1, 1, 1], 12, 3, 0.5, 0.25))
    made = plan.provenance
    assert (made.algorithm, made.depth, made.boundary, made.metric) == ("delta", 0.5, 0.25, "")
    assert stack.calls == 0
    plan.save(tmp_path / "plan.json")
    assert CachePlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "blocks"}, f"'blocks'; choose one of {', '.join(KINDS)}"),
        ({"objective": "best"}, "unknown objective 'best'; choose one of anchor, consecutive"),
        ({"score": "best"}, "unknown score 'best'; choose one of volatility, scheduled"),
        (
            {"kind": "bac", "budgets": {"sa": 0}},
            "budgets.sa must be at least 1 update a branch, got 0",
        ),
        ({"kind": "unified", "budgets": {"sa": 2}}, "accel=unified has no budgets for kinds"),
        ({"depth": 0.0}, "share of the layers, above 0 and up to 1, got 0.0"),
        ({"depth": 1.5}, "share of the layers"),
        ({"boundary": -0.1}, "share of the chain, 0 to 1, got -0.1"),
        ({"boundary": float("nan")}, "share of the chain"),
        ({"metric": "l2"}, "'l2'; choose one of cosine, l1, relative_l2"),
        ({"budget": 0}, "at least 1 update"),
        ({"union": -1}, "0 or more"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AccelConfig(**wrong)
