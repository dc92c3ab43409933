"""Intervals against published figures and scipy, and the properties that they must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fastloop.sims.stats import (
    Interval,
    latency_summary,
    mcnemar_exact,
    mean_over_tasks,
    non_inferiority,
    paired_difference,
    pairs_needed,
    ratio_of_medians,
    tango,
    wilson,
)

counts = st.integers(0, 60)


@st.composite
def discordant(draw):
    b, c, rest = draw(counts), draw(counts), draw(st.integers(0, 200))
    return b, c, max(1, b + c + rest)


def test_wilson_closed_form():
    z, p, n = 1.959963984540054, 0.9, 50
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    got = wilson(45, 50)
    assert (got.low, got.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert (got.value, got.n) == (0.9, 50)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), Statist. Med. 17:857, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(successes, n, low, high):
    got = wilson(successes, n)
    assert (got.low, got.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_observations_knows_nothing():
    got = wilson(0, 0)
    assert math.isnan(got.value)
    assert (got.low, got.high, got.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@given(st.integers(1, 500), st.data())
def test_wilson_contains_the_estimate_and_is_monotone(n, data):
    k = data.draw(st.integers(0, n))
    got, wider = wilson(k, n), wilson(k, n, confidence=0.99)
    assert -1e-12 <= got.low <= got.value + 1e-12
    assert got.value - 1e-12 <= got.high <= 1 + 1e-12
    assert wider.low <= got.low + 1e-12
    assert wider.high >= got.high - 1e-12
    if k < n:
        more = wilson(k + 1, n)
        assert more.low > got.low
        assert more.high > got.high


@pytest.mark.parametrize(
    ("b", "c", "n", "confidence", "low", "high"),
    [
        (9, 3, 32, 0.95, -0.027, 0.390),  # Tango (1998), cross-over trial
        (0, 1, 44, 0.90, -0.096, 0.037),  # Tango (1998), lens disinfection
        (1, 7, 21, 0.95, -0.517, -0.026),  # Fagerland et al. (2014), airway responsiveness
        (60, 20, 1000, 0.95, 0.0231, 0.0584),  # R, PropCIs 0.3-0, scoreci.mp
        (48, 41, 549, 0.90, -0.0157, 0.0414),  # R, PropCIs 0.3-0, scoreci.mp
    ],
)
def test_tango_published(b, c, n, confidence, low, high):
    got = tango(b, c, n, confidence)
    digits = 3 if n < 100 else 4
    assert (round(got.low, digits), round(got.high, digits)) == (low, high)


@pytest.mark.parametrize("n", [1, 5, 200])
def test_tango_closed_forms_at_the_edges(n):
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    none = tango(0, 0, n)
    assert (none.low, none.high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)
    every = tango(n, 0, n)
    assert every.high == 1
    assert every.low == pytest.approx((n - z2) / (n + z2), abs=1e-9)


@settings(deadline=None)
@given(discordant())
def test_tango_contains_the_estimate_and_mirrors(table):
    b, c, n = table
    got, mirrored = tango(b, c, n), tango(c, b, n)
    assert -1 <= got.low <= got.value <= got.high <= 1
    assert got.low < got.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-got.high, -got.low), abs=1e-9)


@settings(deadline=None)
@given(discordant())
def test_tango_agrees_with_mcnemar(table):
    b, c, n = table
    if b + c == 0:
        return
    chi_square = (b - c) ** 2 / (b + c)
    critical = scipy_stats.chi2.ppf(0.95, 1)
    if abs(chi_square - critical) > 1e-6:
        got = tango(b, c, n)
        assert (got.low > 0 or got.high < 0) == (chi_square > critical)


@settings(deadline=None)
@given(discordant())
def test_tango_grows_with_gains_and_narrows_with_pairs(table):
    b, c, n = table
    got = tango(b, c, n + 1)
    more = tango(b + 1, c, n + 1)
    assert more.low >= got.low - 1e-9
    assert more.high >= got.high - 1e-9
    larger = tango(4 * b, 4 * c, 4 * (n + 1))
    assert larger.high - larger.low < got.high - got.low


def test_tango_covers_the_truth():
    rng = np.random.default_rng(0)
    n, cells = 200, [0.03, 0.05, 0.92]
    tables = rng.multinomial(n, cells, size=2000)
    inside = [(i := tango(int(b), int(c), n)).low <= -0.02 <= i.high for b, c, _ in tables]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_tango_refuses_impossible_tables():
    with pytest.raises(ValueError, match="b=3, c=3, n=5"):
        tango(3, 3, 5)


@given(counts, counts)
def test_mcnemar_is_the_binomial_tail(b, c):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail), abs=1e-9)


def test_paired_difference_pairs_by_key():
    candidate = {("a", 0): True, ("a", 1): True, ("a", 2): False, ("a", 3): True}
    baseline = {("a", 0): True, ("a", 1): False, ("a", 2): True, ("b", 3): False}
    got = paired_difference(candidate, baseline)
    assert (got.gained, got.lost, got.interval.n) == (1, 1, 3)
    assert got.interval.value == 0
    assert got.p_value == 1
    assert got.discordance == pytest.approx(2 / 3)


def test_paired_difference_without_pairs_knows_nothing():
    got = paired_difference({1: True}, {2: True})
    assert math.isnan(got.interval.value)
    assert (got.interval.low, got.interval.high) == (-1, 1)
    assert non_inferiority(got.interval, 0.05) == "inconclusive"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.049, 0.01, "non-inferior"),
        (-0.05, 0.01, "inconclusive"),
        (-0.2, -0.05, "inconclusive"),
        (-0.2, -0.06, "inferior"),
        (-0.04, -0.01, "non-inferior"),
    ],
)
def test_non_inferiority_at_five_points(low, high, verdict):
    assert non_inferiority(Interval((low + high) / 2, low, high, 100), 0.05) == verdict


@pytest.mark.parametrize("margin", [0, -0.1, 1, 5])
def test_a_margin_is_a_fraction(margin):
    with pytest.raises(ValueError, match=r"0\.05 = 5 points"):
        non_inferiority(Interval(0, -0.1, 0.1, 10), margin)


@pytest.mark.parametrize(("discordance", "margin"), [(0.06, 0.05), (0.2, 0.1), (0.04, 0.03)])
def test_pairs_needed_has_the_power_that_it_promises(discordance, margin):
    n = pairs_needed(discordance, margin)
    cells = [discordance / 2, discordance / 2, 1 - discordance]
    tables, times = np.unique(
        np.random.default_rng(0).multinomial(n, cells, size=4000), axis=0, return_counts=True
    )
    shown = [tango(int(b), int(c), n).low > -margin for b, c, _ in tables]
    assert np.average(shown, weights=times) == pytest.approx(0.8, abs=0.05)


def test_pairs_needed_approaches_the_textbook_size_for_a_small_margin():
    textbook = (1.959964 + 0.841621) ** 2 * 0.3 / 0.01**2
    assert pairs_needed(0.3, 0.01) == pytest.approx(textbook, rel=0.01)


@settings(deadline=None)
@given(st.floats(0.01, 0.5))
def test_pairs_needed_is_enough_when_every_pair_agrees(margin):
    n = pairs_needed(0, margin)
    assert non_inferiority(tango(0, 0, n + 1), margin) == "non-inferior"
    assert non_inferiority(tango(0, 0, n - 1), margin) == "inconclusive"


def test_mean_over_tasks_weighs_tasks_alike():
    outcomes = {"long": [True] * 90 + [False] * 10, "short": [True] * 5 + [False] * 5}
    got = mean_over_tasks(outcomes)
    assert got.value == pytest.approx(0.7)
    assert got.n == 110
    # The standard error of the mean of two independent rates.
    error = math.sqrt(0.9 * 0.1 / 100 + 0.5 * 0.5 / 10) / 2
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert got == mean_over_tasks(outcomes)
    assert got != mean_over_tasks(outcomes, seed=1)


def test_mean_over_tasks_names_the_empty_task():
    with pytest.raises(ValueError, match="lift"):
        mean_over_tasks({"lift": [], "can": [True]})


def test_latency_percentiles_leave_cold_calls_out():
    values = [900.0, *range(1, 101)]
    got = latency_summary(values, [True] + [False] * 100)
    assert (got.p50, got.p90, got.p99, got.max) == pytest.approx((50.5, 90.1, 99.01, 100))
    assert (got.n, got.cold_n, got.cold_p50, got.cold_max) == (100, 1, 900, 900)


def test_latency_of_no_call_is_unknown():
    got = latency_summary([], [])
    assert (got.n, got.cold_n) == (0, 0)
    assert math.isnan(got.p99)
    assert math.isnan(got.cold_max)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=50))
def test_latency_percentiles_are_ordered(values):
    got = latency_summary(values, [False] * len(values))
    assert min(values) <= got.p50 <= got.p90 <= got.p99 <= got.max == max(values)


def test_pairing_cancels_a_common_drift():
    drift = np.linspace(1, 3, 60)
    slow, fast = 300 * drift, 100 * drift
    paired = ratio_of_medians(slow, fast, paired=True)
    apart = ratio_of_medians(slow, fast, paired=False)
    assert (paired.value, paired.low, paired.high) == pytest.approx((3, 3, 3))
    assert apart.low < 2.7 < 3.3 < apart.high


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(1, 100), min_size=1, max_size=20),
    st.lists(st.floats(1, 100), min_size=1, max_size=20),
    st.floats(0.5, 10),
)
def test_ratio_of_medians_contains_the_estimate_and_scales(slow, fast, factor):
    got = ratio_of_medians(slow, fast, paired=False, resamples=50)
    scaled = ratio_of_medians([factor * s for s in slow], fast, paired=False, resamples=50)
    if min(len(slow), len(fast)) == 1:
        assert math.isnan(got.low)
        assert math.isnan(got.high)
        return
    assert got.low <= got.value <= got.high
    assert scaled.value == pytest.approx(factor * got.value)
    assert scaled.low == pytest.approx(factor * got.low)


@pytest.mark.parametrize(
    ("slow", "fast", "paired"),
    [([], [1.0], False), ([1.0], [0.0], False), ([1.0, 2.0], [1.0], True)],
)
def test_ratio_of_medians_refuses_what_it_cannot_compare(slow, fast, paired):
    with pytest.raises(ValueError, match="latenc"):
        ratio_of_medians(slow, fast, paired=paired)
