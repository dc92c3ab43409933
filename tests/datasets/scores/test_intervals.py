"""The interval of a mean: over groups, reproducible, honest about what it cannot know."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.scores.intervals import mean_interval


def test_equals_the_obvious_bootstrap_over_groups():
    rng = np.random.default_rng(1)
    groups = rng.integers(12, size=90)
    values = rng.normal(size=90) + groups / 4
    members = [values[groups == g] for g in dict.fromkeys(groups)]
    means = []
    for _ in range(4000):
        drawn = [members[i] for i in rng.integers(len(members), size=len(members))]
        means.append(np.concatenate(drawn).mean())
    value, low, high = mean_interval(values, groups, resamples=4000)
    assert value == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.05)


def test_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside, naive = 0, 0
    groups = np.repeat(np.arange(60), 20)
    for seed in range(200):
        values = np.repeat(rng.normal(size=60), 20) + 0.1 * rng.normal(size=1200)
        _, low, high = mean_interval(values, groups, seed=seed, resamples=300)
        inside += low <= 0 <= high
        _, low, high = mean_interval(values, seed=seed, resamples=100)
        naive += low <= 0 <= high
    assert inside >= 180
    assert naive < 120  # samples of one scene are no independent samples


def test_same_seed_same_interval_and_groups_of_any_kind():
    values = np.arange(30.0)
    names = [f"scene-{i % 7}" for i in range(30)]
    once = mean_interval(values, names)
    assert once == mean_interval(values, np.array(names)) == mean_interval(values, names)
    assert once != mean_interval(values, names, seed=1)
    assert mean_interval(values, [i % 7 for i in range(30)]) == once


def test_a_higher_confidence_is_wider():
    values = np.random.default_rng(0).normal(size=100)
    _, low, high = mean_interval(values, confidence=0.8)
    _, lower, higher = mean_interval(values, confidence=0.99)
    assert lower < low < high < higher


def test_nan_rows_are_left_out_with_their_groups():
    values = [1.0, np.nan, 2.0, np.nan, 3.0]
    assert mean_interval(values, list("aabbc")) == mean_interval([1.0, 2.0, 3.0], list("abc"))


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_nothing_is_nan(values):
    assert np.isnan(mean_interval(values)).all()


def test_one_group_says_nothing_of_how_groups_differ():
    value, low, high = mean_interval([1.0, 2.0, 3.0], ["a"] * 3)
    assert value == 2
    assert np.isnan([low, high]).all()


def test_clusters_count_alike_whatever_their_size():
    values = np.concatenate([np.full(50, 8.0), np.full(2, 4.0)])
    names = ["cyclist"] * 50 + ["others"] * 2
    assert mean_interval(values, clusters=names) == (6, 6, 6)
    varied = values + np.random.default_rng(0).normal(size=52)
    _, low, high = mean_interval(varied, clusters=names)
    assert low < np.mean([varied[:50].mean(), varied[50:].mean()]) < high


def test_truth_values_are_rates():
    value, low, high = mean_interval([True, False, True, False] * 10)
    assert value == 0.5
    assert 0 < low < 0.5 < high < 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.data())
def test_lies_between_the_extreme_groups(values, data):
    groups = data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    value, low, high = mean_interval(values, groups, resamples=50)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= value <= max(values) + slack
    if len(set(groups)) > 1:
        assert min(values) - slack <= low <= high <= max(values) + slack
    else:
        assert np.isnan(low)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="2 groups for 3 values"):
        mean_interval([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="1 clusters for 2 values"):
        mean_interval([1, 2], clusters=["a"])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        mean_interval([[1, 2]])
    with pytest.raises(ValueError, match="confidence is 95"):
        mean_interval([1, 2], confidence=95)
