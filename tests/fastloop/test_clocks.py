"""Which clock a configuration means, and how late plans then are."""

import pytest

from fastloop.clocks import check_clock, describe_clock, make_clock, replayed_ms
from fastloop.config import ClockConfig
from fastloop.sims.clock import Frozen, Replay, Wall

TIMED = {"plain": [900.0, 40.0, 60.0, 80.0], "bac": [900.0, 4.0, 6.0, 8.0]}


@pytest.mark.parametrize(
    ("config", "clock"),
    [
        (ClockConfig(), Frozen()),
        (ClockConfig("wall", scale=2), Wall(2)),
        (ClockConfig("replay", [10.0, 20.0], 3), Replay([0.03, 0.06])),
        (ClockConfig("measured"), Replay([0.04, 0.06, 0.08])),
        (ClockConfig("measured", scale=5), Replay([0.2, 0.3, 0.4])),
    ],
)
def test_a_configuration_is_a_clock(config, clock):
    check_clock(config)
    made = make_clock(config, TIMED["plain"])
    assert type(made) is type(clock)
    for plan in range(4):
        ours, theirs = (c.latency_s(0.7, episode=3, plan=plan) for c in (made, clock))
        assert ours == pytest.approx(theirs)


def test_what_slowed_the_computer_down_slows_both_arms():
    clocks = [make_clock(ClockConfig("measured"), timed) for timed in TIMED.values()]
    for episode in range(20):
        slow, fast = (c.latency_s(0, episode=episode, plan=1) for c in clocks)
        assert slow == pytest.approx(10 * fast)


def test_the_cold_plan_is_not_replayed():
    assert replayed_ms(ClockConfig("measured", scale=2), TIMED["bac"]) == [8.0, 12.0, 16.0]
    assert replayed_ms(ClockConfig(), TIMED["bac"]) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (ClockConfig(), "The world waits"),
        (ClockConfig("wall"), "as late as they really are."),
        (ClockConfig("wall", scale=3), "as late as they really are times 3."),
        (ClockConfig("replay", [100.0]), "a trace of latencies says: p50 100 ms (1 tick)."),
        (ClockConfig("measured"), "its own latencies: p50 plain 60 ms (1 tick), bac 6 ms (1 tick)"),
        (ClockConfig("measured", scale=5), "times 5: p50 plain 300 ms (3 ticks), bac 30 ms (1 tic"),
    ],
)
def test_it_is_told(config, told):
    assert told in describe_clock(config, TIMED, 10.0)
