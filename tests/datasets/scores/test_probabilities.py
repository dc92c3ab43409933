"""Calibration and ranking of probabilities, by hand and beside loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.scores.probabilities import auroc, expected_calibration_error

PAIRS = st.lists(st.tuples(st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1]), st.booleans()), min_size=1)


def test_calibration_by_hand():
    said, came = [0.95, 0.95, 0.05, 0.05], [True, False, False, False]
    assert expected_calibration_error(said, came) == pytest.approx((0.45 + 0.05) / 2)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([0.5, 0.5], [True, False]) == 0, "the base rate"
    assert expected_calibration_error([0.5, 0.5], [True, False], bins=1) == 0
    assert math.isnan(expected_calibration_error([], []))


@given(pairs=PAIRS)
def test_calibration_as_a_loop(pairs):
    said, came = map(np.array, zip(*pairs, strict=True))
    expected = 0.0
    for k in range(10):
        inside = (said * 10).astype(int) == k if k < 9 else said * 10 >= 9
        if inside.any():
            expected += inside.mean() * abs(said[inside].mean() - came[inside].mean())
    assert expected_calibration_error(said, came) == pytest.approx(expected)


@given(pairs=PAIRS)
def test_ranking_as_all_pairs(pairs):
    said, came = map(np.array, zip(*pairs, strict=True))
    wins = [1.0 if p > q else 0.5 if p == q else 0.0
            for p in said[came] for q in said[~came]]  # fmt: skip
    if not wins:
        assert math.isnan(auroc(said, came))
    else:
        assert auroc(said, came) == pytest.approx(np.mean(wins))


def test_what_is_no_probability_is_told():
    with pytest.raises(ValueError, match=r"from 0\.5 to 1\.5, expected \[0, 1\]"):
        expected_calibration_error([0.5, 1.5], [True, False])
    with pytest.raises(ValueError, match="1 of 2 probabilities are nan"):
        auroc([0.5, math.nan], [True, False])
    with pytest.raises(ValueError, match=r"\(1,\) probabilities for \(2,\) outcomes"):
        auroc([0.5], [True, False])
