"""Recordings with wrong stamps, made from right ones."""

import numpy as np
import pytest

from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.sims.driving.retiming import retimed


def log_at(times):
    """A car that turns and speeds up, seen at `times` (s) and stamped at an even 0.1 s."""
    count = len(times)
    speed, heading = 5 + 0.5 * times, 0.1 * times
    fine = np.linspace(0, 30, 3001)
    velocity = (5 + 0.5 * fine)[:, None] * np.stack([np.cos(0.1 * fine), np.sin(0.1 * fine)], 1)
    steps = (velocity[1:] + velocity[:-1]) / 2 * 0.01
    way = np.concatenate([[[0, 0]], np.cumsum(steps, 0)])
    x, y = (np.interp(times, fine, part) for part in way.T)
    position = np.stack([x, y, 0 * x], 1)
    velocity = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
    velocity[-1] = 0
    seen = np.ones(count, bool)
    size = np.array([4.0, 2.0, 1.5])
    ego = Track("vehicle", position, heading, velocity, size, seen)
    other = Track("vehicle", position + 10, heading, velocity, size, seen)
    stamps = 10**9 + 10**8 * np.arange(count, dtype=np.int64)
    return DrivingLog("made", "test", "here", stamps, "ego", {"ego": ego, "other": other})


def speeds(log):
    return np.hypot(*log.tracks["ego"].velocity.T)


def test_right_stamps_stay():
    times = np.arange(100) / 10
    log = log_at(times)
    after = retimed(log)
    np.testing.assert_array_equal(after.stamps, log.stamps)
    for key in log.tracks:
        np.testing.assert_allclose(after.tracks[key].position, log.tracks[key].position, atol=1e-6)
    np.testing.assert_allclose(speeds(after), 5 + 0.5 * times, atol=0.05)


def test_leaps_are_time_that_passed():
    times = np.arange(100) / 10
    times[30:] += 0.1
    times[60:] += 0.05
    after = retimed(log_at(times))
    assert len(after) == pytest.approx(101, abs=1)
    even = (after.stamps - after.stamps[0]) * 1e-9
    np.testing.assert_allclose(speeds(after), 5 + 0.5 * even, atol=0.15)
    gap = after.tracks["other"].position - after.tracks["ego"].position
    np.testing.assert_allclose(gap, 10)


def test_a_drive_ends_before_it_goes_back_in_time():
    times = np.arange(100) / 10
    times[97:] -= 0.25
    after = retimed(log_at(times))
    assert len(after) == 97
    assert speeds(after).min() > 4.9


def test_braking_is_no_leap():
    log = log_at(np.concatenate([np.arange(50) / 10, np.full(50, 4.9)]))
    after = retimed(log)
    np.testing.assert_array_equal(after.stamps, log.stamps)


def test_a_log_too_short_to_tell_stays():
    log = log_at(np.array([0, 0.1, 0.5]))
    assert retimed(log) is log
