"""Odds that are shifted by what came true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit

from fastloop.datasets.scores.probabilities import expected_calibration_error
from fastloop.policies.cacheflow.recalibration import Recalibration


def test_who_has_seen_nothing_says_the_same():
    said = np.array([0.001, 0.2, 0.5, 0.999])
    watched = Recalibration()
    np.testing.assert_allclose(watched(said), said)
    watched.learn([], [])
    np.testing.assert_allclose(watched(said), said)


@given(
    st.floats(0.05, 10),
    st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=30),
)
def test_the_shift_is_the_likeliest(weight, forecasts):
    said, came = map(np.array, zip(*forecasts, strict=True))
    watched = Recalibration()
    watched.learn(said, came, weight)

    def unlikely(shift):
        likely = expit(logit(said) + shift)
        loss = -np.log(np.where(came, likely, 1 - likely)).sum()
        return weight * loss + float(shift[0]) ** 2 / 2

    assert watched.shift == pytest.approx(minimize(unlikely, np.zeros(1)).x[0], abs=1e-3)


def test_another_place_is_learned():
    rng = np.random.default_rng(0)
    said = rng.uniform(0.1, 0.4, 3000)
    truth = expit(logit(said) - 1.2)
    came = rng.uniform(size=3000) < truth
    watched = Recalibration()
    for rows in np.split(np.arange(2000), 200):
        watched.learn(said[rows], came[rows])
    assert watched.shift == pytest.approx(-1.2, abs=0.15)
    new = slice(2000, None)
    assert expected_calibration_error(said[new], came[new]) > 0.1
    assert expected_calibration_error(watched(said[new]), came[new]) < 0.03


def test_one_after_another_is_nearly_all_at_once():
    rng = np.random.default_rng(1)
    said = rng.uniform(0.05, 0.6, 400)
    came = rng.uniform(size=400) < 0.5
    together, single = Recalibration(), Recalibration()
    together.learn(said, came)
    for one, happened in zip(said, came, strict=True):
        single.learn([one], [happened])
    assert single.shift == pytest.approx(together.shift, abs=0.05)
    assert single.precision == pytest.approx(together.precision, rel=0.05)


def test_who_was_sure_and_wrong_goes_on():
    watched = Recalibration()
    watched.learn(np.zeros(1000), np.ones(1000, bool))
    assert 0 < watched.shift < 20
    assert np.isfinite(watched([0.0, 1.0])).all()


@pytest.mark.parametrize(
    ("said", "came", "weight", "message"),
    [
        ([0.1, 0.2], [True], 1.0, r"\(2,\) probabilities for \(1,\) outcomes"),
        ([1.2], [True], 1.0, "expected numbers in"),
        ([np.nan], [True], 1.0, "expected numbers in"),
        ([0.5], [True], 0.0, "weight must be a positive number, got 0"),
    ],
)
def test_what_is_no_forecast_is_refused_and_nothing_learned(said, came, weight, message):
    watched = Recalibration()
    with pytest.raises(ValueError, match=message):
        watched.learn(said, came, weight)
    assert (watched.shift, watched.precision) == (0, 1)
