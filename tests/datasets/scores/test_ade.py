"""Displacement errors: against the right reference, over the right points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.ade import ade, top_rated


@given(st.integers(0, 2**32), st.sampled_from([3, 5]))
def test_equals_the_obvious_loop(seed, seconds):
    rng = np.random.default_rng(seed)
    plans = rng.normal(size=(3, 20, 2))
    references = [rng.normal(size=(rng.integers(1, 24), 2)) for _ in plans]
    expected = [
        np.mean([np.hypot(*(plan[k] - truth[min(k, len(truth) - 1)])) for k in range(4 * seconds)])
        for plan, truth in zip(plans, references, strict=True)
    ]
    np.testing.assert_allclose(ade(plans, references, seconds), expected, rtol=1e-12)


def test_three_seconds_are_the_first_twelve_points():
    plan = np.zeros((1, 20, 2))
    plan[0, 12:, 1] = 5
    truth = [np.zeros((20, 2))]
    assert ade(plan, truth, 3).tolist() == [0]
    assert ade(plan, truth, 5).tolist() == [2]
    assert ade(plan[:, :6], truth, 3, hz=2).tolist() == [0]


def test_a_short_reference_is_parked():
    assert ade(np.zeros((1, 4, 2)), [[[3, 4], [0, 1]]], 1).tolist() == [(5 + 1 + 1 + 1) / 4]


def test_no_plans_no_errors():
    assert ade(np.zeros((0, 20, 2)), [], 5).shape == (0,)


def test_the_first_of_equally_rated_is_the_reference():
    trajectories = [np.full((20, 2), k) for k in range(3)]
    np.testing.assert_array_equal(top_rated(trajectories, [4, 9, 9]), trajectories[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ade(np.zeros((20, 2)), [], 5), r"expected \(N, T, 2\)"),
        (lambda: ade(np.zeros((2, 20, 2)), [np.zeros((20, 2))], 5), "1 references for 2 plans"),
        (lambda: ade(np.zeros((1, 12, 2)), [np.zeros((20, 2))], 5), "plans with 12 points"),
        (lambda: ade(np.zeros((1, 12, 2)), [np.zeros((20, 2))], 0.3), "whole number of points"),
        (lambda: ade(np.zeros((1, 20, 2)), [np.zeros((0, 2))], 5), "reference 0 has shape"),
        (lambda: ade(np.zeros((1, 20, 2)), [np.zeros((20, 3))], 5), r"\(20, 3\)"),
        (lambda: ade(np.zeros((1, 20, 2)), [np.full((9, 2), np.nan)], 5), "plan 0 or its ref"),
        (lambda: top_rated([], []), "one or more"),
        (lambda: top_rated([np.zeros((1, 2))], [1, 2]), "a score each"),
        (lambda: top_rated([np.zeros((1, 2))], [np.nan]), "nan"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(DatasetError, match=message):
        call()
