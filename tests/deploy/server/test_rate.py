"""How often a client may ask: a bucket that fills evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.server.rate import Rate, RateError


def taken(rate, times):
    """When it was let through."""
    found = []
    for now in times:
        try:
            rate.take(now)
            found.append(now)
        except RateError:
            pass
    return found


@given(st.floats(0.5, 100), st.lists(st.floats(0, 2), min_size=1, max_size=80).map(sorted))
def test_no_more_pass_than_a_second_s_worth_and_what_flowed_in(hz, times):
    rate = Rate(hz)
    start = rate._then
    passed = taken(rate, [start + t for t in times])
    for n, first in enumerate(passed):
        for m, last in enumerate(passed[n:], 1):
            assert m <= max(1, hz) + (last - first) * hz + 1e-6


def test_who_keeps_to_it_is_never_refused():
    rate = Rate(10.0)
    times = [rate._then + 0.1001 * n for n in range(100)]
    assert taken(rate, times) == times


def test_it_says_when_to_ask_again_and_then_answers():
    rate = Rate(2.0)
    start = rate._then
    assert len(taken(rate, [start] * 5)) == 2
    with pytest.raises(RateError, match=r"at most 2 requests a second .* again in 400 ms"):
        rate.take(start + 0.1)
    assert taken(rate, [start + 0.49, start + 0.501]) == [start + 0.501]


def test_without_a_limit_all_pass():
    rate = Rate(0.0)
    assert len(taken(rate, [0.0] * 1000)) == 1000
