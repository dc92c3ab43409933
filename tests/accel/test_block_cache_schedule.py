from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.block_cache.schedule import (
    adaptive_schedules,
    delta_schedules,
    distances,
    uniform_schedule,
    zeus_schedule,
)
from fastloop.accel.config import METRICS, OBJECTIVES


def total_distance(distance, schedule, objective="anchor"):
    """Every step that reuses is charged the distance to the last update, or to the step before."""
    return sum(
        distance[max(a for a in schedule if a <= t) if objective == "anchor" else t - 1, t]
        for t in range(len(distance))
        if t not in schedule
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(st.integers(2, 9), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 999))
def test_adaptive_schedule_equals_exhaustive_search(objective, steps, budgets, seed):
    budgets = [min(budget, steps) for budget in budgets]
    distance = np.random.default_rng(seed).random((3, steps, steps))
    found = adaptive_schedules(distance, budgets, objective)
    for d, schedule, budget in zip(distance, found, budgets, strict=True):
        every = [(0, *rest) for rest in combinations(range(1, steps), budget - 1)]
        assert schedule in every
        assert total_distance(d, schedule, objective) == pytest.approx(
            min(total_distance(d, s, objective) for s in every), abs=1e-12
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_budget_is_for_all_branches(objective):
    distance = np.random.default_rng(1).random((3, 9, 9))
    same = adaptive_schedules(distance, [4, 4, 4], objective)
    assert adaptive_schedules(distance, 4, objective) == same


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_of_equal_schedules_the_earlier_one_is_taken(objective):
    assert adaptive_schedules(np.zeros((1, 6, 6)), 3, objective) == [(0, 1, 2)]


def test_consecutive_updates_where_the_value_moves_most_however_long_the_gap():
    """A drift of many small changes costs anchors much and consecutive terms little."""
    position = np.array([0, 5, 6, 7, 8, 9, 10, 11, 12, 16.0])
    distance = abs(position[:, None] - position)[None]
    assert adaptive_schedules(distance, 3, "consecutive") == [(0, 1, 9)]
    assert adaptive_schedules(distance, 3, "anchor") == [(0, 1, 5)]


def test_the_diagonal_does_not_matter():
    distance = np.random.default_rng(0).random((2, 8, 8))
    shifted = distance + 7 * np.eye(8)
    assert adaptive_schedules(distance, 3) == adaptive_schedules(shifted, 3)


@pytest.mark.parametrize("budget", [0, 9, -1])
def test_a_budget_that_does_not_fit_is_refused(budget):
    with pytest.raises(ValueError, match=f"{budget} updates does not fit 8 denoise steps"):
        adaptive_schedules(np.zeros((1, 8, 8)), budget)
    with pytest.raises(ValueError, match=f"{budget} updates does not fit 8 denoise steps"):
        uniform_schedule(8, budget)
    with pytest.raises(ValueError, match=f"{budget} updates does not fit 8 denoise steps"):
        adaptive_schedules(np.zeros((2, 8, 8)), [3, budget])


def test_uniform_schedule_is_every_tenth_step_of_a_hundred():
    assert uniform_schedule(100, 10) == tuple(range(0, 100, 10))


@given(st.integers(1, 60), st.data())
def test_uniform_schedule_has_the_budget_and_even_gaps(steps, data):
    budget = data.draw(st.integers(1, steps))
    schedule = uniform_schedule(steps, budget)
    gaps = np.diff([*schedule, steps])
    assert schedule[0] == 0
    assert len(schedule) == budget
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_distances_are_what_they_say():
    activations = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = {metric: distances(activations, metric) for metric in METRICS}
    x = activations.double().numpy()
    for n in range(2):
        for a in range(5):
            for t in range(5):
                one, two = x[n, a], x[n, t]
                cosine = 1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two)
                relative = np.linalg.norm(two - one) / np.linalg.norm(two)
                assert found["cosine"][n, a, t].item() == pytest.approx(cosine, abs=1e-6)
                assert found["l1"][n, a, t].item() == pytest.approx(abs(one - two).mean(), abs=1e-6)
                assert found["relative_l2"][n, a, t].item() == pytest.approx(relative, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_on_unit_vectors_squared_l2_and_cosine_schedule_alike(seed):
    """l2^2 = 2 - 2 cos: a distance that was maximized by mistake would not agree."""
    x = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=-1)
    squared = distances(x, "relative_l2").numpy() ** 2
    cosine = distances(x, "cosine").numpy()
    np.testing.assert_allclose(squared, 2 * cosine, atol=1e-12)
    (ours,), (theirs,) = adaptive_schedules(squared, 4), adaptive_schedules(cosine, 4)
    assert total_distance(cosine[0], ours) == pytest.approx(total_distance(cosine[0], theirs))


def test_a_branch_that_answers_zero_has_finite_distances():
    for metric in METRICS:
        assert distances(torch.zeros(1, 4, 3), metric).isfinite().all()


def test_an_unknown_metric_lists_the_choices():
    with pytest.raises(ValueError, match="'l2'; choose one of cosine, l1, relative_l2"):
        distances(torch.zeros(1, 2, 3), "l2")


def test_an_unknown_objective_lists_the_choices():
    with pytest.raises(ValueError, match="'best'; choose one of anchor, consecutive"):
        adaptive_schedules(np.zeros((1, 4, 4)), 2, "best")


def test_delta_reuses_the_rear_early_and_the_front_late():
    """Four layers of two branches, 8 steps in two halves, refreshed every fourth step."""
    front = (0, 1, 2, 3, 4)  # computed early; late only when refreshed
    rear = (0, 4, 5, 6, 7)
    layers = [0, 0, 1, 1, 2, 2, 3, 3]
    assert delta_schedules(layers, 8, 2, 0.5, 0.5) == [front] * 4 + [rear] * 4
    always = tuple(range(8))
    quarter = delta_schedules(layers, 8, 2, 0.25, 0.5)
    assert quarter == [front] * 2 + [always] * 4 + [rear] * 2


@given(st.integers(2, 5), st.integers(1, 20), st.floats(0.01, 1), st.floats(0, 1), st.data())
def test_delta_reuses_a_range_and_refreshes_all_of_it_at_once(layers, steps, depth, boundary, data):
    budget = data.draw(st.integers(1, steps))
    refreshed = set(uniform_schedule(steps, budget))
    found = delta_schedules(range(layers), steps, budget, depth, boundary)
    count = max(1, round(depth * layers))
    for k in range(steps):
        reused = [layer for layer, schedule in enumerate(found) if k not in schedule]
        early = k < round(boundary * steps)
        whole = list(range(layers))[-count:] if early else list(range(count))
        assert reused == ([] if k in refreshed else whole)


def test_delta_over_the_whole_depth_is_uniform():
    assert delta_schedules([0, 1, 2], 12, 3, 1.0, 0.5) == [uniform_schedule(12, 3)] * 3


def test_zeus_at_its_published_default():
    assert set(range(50)) - set(zeus_schedule(50, 32)) == set(range(11, 47, 2))


@given(st.integers(1, 120).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k))))
def test_zeus_evaluates_as_often_as_it_may_from_the_first_step(case):
    steps, budget = case
    schedule = zeus_schedule(steps, budget)
    assert (schedule[0], len(schedule)) == (0, budget)
    assert sorted(set(schedule)) == list(schedule)
    assert schedule[-1] < steps


def test_delta_needs_a_front_and_a_rear():
    with pytest.raises(ValueError, match="cached as one; choose uniform or unified"):
        delta_schedules([0, 0], steps=10, budget=2, depth=0.5, boundary=0.5)
