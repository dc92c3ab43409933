"""Where the frames of a window lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.lags import lags
from fastloop.policies.spec import ActionSpec, PolicySpec


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ((1,), (0,)),
        ((4,), (3, 2, 1, 0)),
        ((4, 20), (60, 40, 20, 0)),
        ((4, 5, "mixed"), (11, 6, 1, 0)),
        ((5, 5, "mixed"), (12, 7, 2, 1, 0)),
        ((1, 5, "mixed"), (0,)),
    ],
)
def test_lags(given_, expected):
    assert lags(*given_) == expected


@given(
    n_obs_steps=st.integers(1, 40),
    stride=st.integers(1, 30),
    spacing=st.sampled_from(["uniform", "mixed"]),
)
def test_a_spec_takes_them(n_obs_steps, stride, spacing):
    made = lags(n_obs_steps, stride, spacing)
    action = ActionSpec(1, "position", (-1.0,), (1.0,))
    spec = PolicySpec({}, action, n_obs_steps, n_obs_steps, 1, 10.0, lags=made)
    assert spec.lags == made
    assert len(made) == n_obs_steps
    assert made[0] <= (n_obs_steps - 1) * stride


@pytest.mark.parametrize(
    ("given_", "message"),
    [((0,), "at least 1 frame"), ((2, 0), "at least 1 tick"), ((2, 1, "log"), "uniform, mixed")],
)
def test_what_is_no_window(given_, message):
    with pytest.raises(ValueError, match=message):
        lags(*given_)


@pytest.mark.parametrize("wrong", [(1, 0), (0, 1, 2), (2, 1, 1), (3, 2, 1), (2, 2, 0)])
def test_lags_that_a_spec_refuses(wrong):
    with pytest.raises(ValueError, match="the lags of 3 frames must fall to 0"):
        PolicySpec({}, ActionSpec(1, "position", (-1.0,), (1.0,)), 3, 4, 1, 10.0, lags=wrong)
