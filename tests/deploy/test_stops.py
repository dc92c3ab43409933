"""Stops: at rest in the end, within their bounds, without a jump."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.stops import stop_profile

SPEEDS = st.floats(0, 40)
PULLS = st.floats(-6, 4)
BRAKES = st.floats(0.5, 8)
JERKS = st.floats(0.5, 40)


@given(SPEEDS, PULLS, BRAKES, JERKS)
def test_it_ends_at_rest_and_never_goes_back(speed, pull, brake, jerk):
    profile = stop_profile(speed, pull, deceleration=brake, jerk=jerk)
    times = np.linspace(0, profile.duration, 400)
    distance, speeds, _ = profile.sample(times).T
    assert speeds[-1] == 0
    assert speeds[0] == pytest.approx(speed, abs=1e-9)
    assert (speeds >= 0).all()
    assert (np.diff(distance) >= -1e-9).all()
    assert distance[-1] == pytest.approx(profile.distance)
    steps = np.trapezoid(speeds, times) if hasattr(np, "trapezoid") else np.trapz(speeds, times)
    assert steps == pytest.approx(distance[-1], rel=1e-3, abs=1e-3)


@given(SPEEDS, st.floats(-0.4, 4), BRAKES, JERKS)
def test_it_keeps_its_bounds(speed, pull, brake, jerk):
    profile = stop_profile(speed, pull, deceleration=brake, jerk=jerk)
    times = np.linspace(0, profile.duration, 4001)[:-1]
    _, speeds, pulls = profile.sample(times).T
    assert pulls.min() >= -max(brake, -pull) - 1e-6
    if not (pull < 0 and pull**2 / (2 * jerk) >= speed):
        assert max(np.abs(profile.jerks), default=0) <= jerk + 1e-9
    if len(times) and profile.duration > 0:
        change = np.abs(np.diff(speeds)).max()
        assert change <= (max(brake, abs(pull)) + 1e-6) * profile.duration / 4000 + 1e-9


def test_the_textbook_stop():
    """10 m/s, 2 m/s^2 and 1 m/s^3: 2 s building up, 3 s holding, 2 s letting go."""
    profile = stop_profile(10.0, 0.0, deceleration=2.0, jerk=1.0)
    assert profile.jerks == (-1.0, 0.0, 1.0)
    assert profile.durations == (2.0, 3.0, 2.0)
    assert profile.distance == pytest.approx(35.0)


def test_who_stands_has_stopped():
    assert stop_profile(0.0, -1.0, deceleration=2.0, jerk=1.0).duration == 0
