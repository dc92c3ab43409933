import numpy as np
import pytest
import torch

from fastloop.accel.block_cache import calibrate, make_plan
from fastloop.accel.block_cache.bubbling import bubbling_union
from fastloop.accel.block_cache.calibrate import trace
from fastloop.accel.block_cache.schedule import adaptive_schedules, distances
from fastloop.accel.config import METRICS, AccelConfig

BAC = AccelConfig("bac", budget=3, union=2)


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
    config = AccelConfig("bac", budget=3, union=0, metric=metric)
    found = calibrate(stack, sampler, noises, conds, config)
    each = [
        distances(trace(stack, sampler, noises[:, m : m + 1], conds[m : m + 1]), metric).numpy()
        for m in range(4)
    ]
    np.testing.assert_allclose(found.distance, np.mean(each, axis=0), rtol=1e-12, atol=1e-14)
    assert found.plan.updates == tuple(adaptive_schedules(found.distance, 3))


def test_bac_unites_the_most_volatile(watched):
    stack, sampler, noises, conds = watched
    found = calibrate(stack, sampler, noises, conds, BAC, digest="d", seeds=(5, 6))
    base = adaptive_schedules(found.distance, 3)
    scores = torch.from_numpy(found.volatility)
    assert found.plan.updates == tuple(bubbling_union(base, stack.branches, scores, 2))
    made = found.plan.provenance
    assert (made.algorithm, made.budget, made.union, made.metric) == ("bac", 3, 2, "cosine")
    assert (made.digest, made.observations, made.seeds) == ("d", 4, (5, 6))
    assert 0 <= made.stability <= 1


def test_unified_gives_every_branch_the_schedule_of_the_first(watched):
    stack, sampler, noises, conds = watched
    found = calibrate(stack, sampler, noises, conds, AccelConfig("unified", budget=4))
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
    for kind in ("uniform", "unified", "bac"):
        config = AccelConfig(kind, budget=3, force_last=True)
        plan = make_plan(config, stack, sampler, (noises, conds))
        plain = make_plan(AccelConfig(kind, budget=3), stack, sampler, (noises, conds))
        assert plan.updates == tuple(tuple(sorted({*u, 11})) for u in plain.updates)


def test_progress_is_told_after_each_observation(watched):
    told = []
    calibrate(*watched, BAC, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bad_input_is_refused_before_any_work(watched):
    stack, sampler, noises, conds = watched
    with pytest.raises(ValueError, match="40 updates does not fit 12"):
        calibrate(stack, sampler, noises, conds, AccelConfig("bac", budget=40))
    with pytest.raises(ValueError, match="at least one observation"):
        calibrate(stack, sampler, noises[:, :0], conds[:0], BAC)
    with pytest.raises(ValueError, match="needs no calibration"):
        calibrate(stack, sampler, noises, conds, AccelConfig("uniform"))
    with pytest.raises(ValueError, match="makes no cache plan"):
        make_plan(AccelConfig("none"), stack, sampler)
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
    plan = make_plan(AccelConfig("uniform", budget=3), stack, sampler, digest="d")
    assert plan.updates == ((0, 4, 8),) * 6
    assert (plan.provenance.algorithm, plan.provenance.digest) == ("uniform", "d")
    assert stack.calls == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "blocks"}, "'blocks'; choose one of none, uniform, unified, bac"),
        ({"metric": "l2"}, "'l2'; choose one of cosine, l1, relative_l2"),
        ({"budget": 0}, "at least 1 update"),
        ({"union": -1}, "0 or more"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AccelConfig(**wrong)
