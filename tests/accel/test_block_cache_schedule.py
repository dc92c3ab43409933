from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.block_cache.schedule import adaptive_schedules, distances, uniform_schedule
from fastloop.accel.config import METRICS


def total_distance(distance, schedule):
    """Every step is charged the distance to the last update before it."""
    return sum(
        distance[max(a for a in schedule if a <= t), t]
        for t in range(len(distance))
        if t not in schedule
    )


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_adaptive_schedule_equals_exhaustive_search(steps, budget, seed):
    budget = min(budget, steps)
    distance = np.random.default_rng(seed).random((3, steps, steps))
    for d, schedule in zip(distance, adaptive_schedules(distance, budget), strict=True):
        every = [(0, *rest) for rest in combinations(range(1, steps), budget - 1)]
        assert schedule in every
        assert total_distance(d, schedule) == pytest.approx(
            min(total_distance(d, s) for s in every), abs=1e-12
        )


def test_of_equal_schedules_the_earlier_one_is_taken():
    assert adaptive_schedules(np.zeros((1, 6, 6)), 3) == [(0, 1, 2)]


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
    (ours,), (theirs,) = adaptive_schedules(squared, 4), adaptive_schedules(cosine, 4)
    assert total_distance(cosine[0], ours) == pytest.approx(total_distance(cosine[0], theirs))


def test_a_branch_that_answers_zero_has_finite_distances():
    for metric in METRICS:
        assert distances(torch.zeros(1, 4, 3), metric).isfinite().all()


def test_an_unknown_metric_lists_the_choices():
    with pytest.raises(ValueError, match="'l2'; choose one of cosine, l1, relative_l2"):
        distances(torch.zeros(1, 2, 3), "l2")
