"""Schedule, lifecycle, variants, histograms: the small parts of the loop."""

import math
import threading
import time

import numpy as np
import pytest

from fastloop.deploy.anytime import Anytime
from fastloop.deploy.clock import ToldClock, VirtualClock, WallClock
from fastloop.deploy.health.histogram import Histogram
from fastloop.deploy.lifecycle import IllegalTransitionError, Lifecycle
from fastloop.deploy.schedule import Schedule


def test_slots_are_absolute():
    schedule = Schedule(10.0, 0.1)
    assert [schedule.following(10.0 + 0.1 * k + 0.03) for k in range(4)] == [0, 1, 2, 3]
    assert schedule.time(30) == pytest.approx(13.0)
    assert schedule.skipped == 0


def test_an_overrun_skips_to_the_next_slot():
    schedule = Schedule(0.0, 0.1)
    schedule.following(0.0)
    assert schedule.following(0.14) == 1  # 40 ms late is late, not lost
    assert schedule.following(0.76) == 8
    assert schedule.skipped == 6


def test_a_period_must_be_positive():
    with pytest.raises(ValueError, match="positive seconds, got 0"):
        Schedule(0.0, 0.0)


def test_a_node_lives():
    told = []
    life = Lifecycle(listeners=[lambda *args: told.append(args)])
    for transition in ("configure", "succeed", "activate", "succeed", "deactivate", "shutdown"):
        life.go(transition)
    assert life.state == "finalized"
    assert told[0] == ("configure", "unconfigured", "configuring")
    with pytest.raises(IllegalTransitionError, match=r"finalized; .* here: none"):
        life.go("configure")


def test_an_illegal_transition_names_the_legal_ones():
    with pytest.raises(IllegalTransitionError, match="from here: configure, shutdown"):
        Lifecycle().go("activate")


def test_the_best_variant_that_fits():
    anytime = Anytime({"full": 0.05, "half": 0.02, "instant": 0.001})
    assert anytime.choose(0.08) == "full"
    assert anytime.choose(0.03) == "half"
    assert anytime.choose(0.0001) == "instant"  # none fits: the quickest


def test_a_slow_variant_is_left_at_once_and_taken_again_with_patience():
    anytime = Anytime({"full": 0.05, "half": 0.02}, patience=5)
    anytime.choose(0.08)
    anytime.learn("full", 0.12)
    assert anytime.choose(0.08) == "half"
    anytime.learn("half", 0.02)
    assert [anytime.choose(0.08) for _ in range(5)] == ["half"] * 4 + ["full"]


def test_a_machine_that_became_slow_makes_better_variants_slow():
    anytime = Anytime({"full": 0.05, "half": 0.02}, patience=2)
    anytime.failed()
    anytime.learn("half", 0.04)  # twice what it was: the full one would need 0.1 s
    assert {anytime.choose(0.08) for _ in range(10)} == {"half"}


@pytest.mark.parametrize("bad", [{}, {"full": 0.0}, {"full": math.nan}])
def test_variants_need_latencies(bad):
    with pytest.raises(ValueError, match="positive seconds each"):
        Anytime(bad)


def test_quantiles_of_a_histogram():
    histogram = Histogram()
    samples = np.random.default_rng(0).lognormal(-6, 1, 5000)
    for sample in samples.tolist():
        histogram.record(sample)
    for share, told in zip((0.5, 0.99), histogram.quantiles((0.5, 0.99)), strict=True):
        assert told == pytest.approx(np.quantile(samples, share), rel=0.03)
    assert histogram.largest == samples.max()
    assert histogram.count == 5000


def test_the_last_minute_forgets():
    now = [0.0]
    histogram = Histogram(lambda: now[0])
    histogram.record(1.0)
    now[0] = 120.0
    histogram.record(0.001)
    assert histogram.quantiles([1.0], last_minute=True)[0] == pytest.approx(0.001, rel=0.2)
    assert histogram.quantiles([1.0])[0] == 1.0
    now[0] = 500.0
    assert math.isnan(histogram.quantiles([0.5], last_minute=True)[0])


def test_calls_happen_on_the_way():
    clock, told = VirtualClock(), []
    clock.at(2.0, lambda: told.append((2, clock.now())))
    clock.at(1.0, lambda: told.append((1, clock.now())))
    clock.at(1.0, lambda: clock.at(1.5, lambda: told.append((1.5, clock.now()))))
    before = clock.wall_ns()
    clock.sleep_until(3.0)
    clock.set_wall(-10.0)
    assert told == [(1, 1.0), (1.5, 1.5), (2, 2.0)]
    assert clock.wall_ns() - before == -7_000_000_000
    clock.sleep_until(1.0)
    assert clock.now() == 3.0


@pytest.mark.parametrize("spin_s", [0.0, 0.002])
def test_a_wait_is_never_too_short(spin_s):
    clock = WallClock(spin_s)
    until = clock.now() + 0.01
    clock.sleep_until(until)
    assert clock.now() >= until


def test_time_that_is_told_stands_still_between_words_and_never_goes_back():
    clock = ToldClock(patience_s=0.01)
    assert (clock.now(), clock.wall_ns()) == (0, 0)
    clock.tell(5_000_000_000)
    assert clock.now() == 0
    clock.tell(5_250_000_000)
    assert clock.now() == 0.25
    clock.tell(1_000_000_000)  # the bag begins anew
    assert (clock.now(), clock.wall_ns()) == (0.25, 1_000_000_000)
    clock.tell(1_500_000_000)
    assert clock.now() == 0.75
    clock.sleep_until(9.0)  # comes back although nothing is told
    assert clock.now() == 0.75


def test_who_waits_for_told_time_wakes_up_when_it_comes():
    clock = ToldClock(patience_s=60.0)
    clock.tell(10**9)
    threading.Timer(0.05, clock.tell, [3 * 10**9]).start()
    began = time.monotonic()
    clock.sleep_until(2.0)
    assert clock.now() == 2.0
    assert time.monotonic() - began < 30
