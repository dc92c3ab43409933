"""Latencies in virtual time: deterministic, in whole ticks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.clock import Frozen, Replay, Wall, late_ticks


@given(ticks=st.integers(0, 500), hz=st.sampled_from([5.0, 10.0, 20.0, 30.0, 50.0]))
def test_whole_ticks_do_not_round_up(ticks, hz):
    assert late_ticks(ticks / hz, hz) == ticks
    assert late_ticks(ticks / hz + 1e-4, hz) == ticks + 1


def test_frozen_and_wall():
    assert Frozen().latency_s(0.3, episode=1, plan=2) == 0
    assert Wall().latency_s(0.3, episode=1, plan=2) == 0.3
    assert Wall(scale=2).latency_s(0.3, episode=1, plan=2) == 0.6


def test_replay_reads_the_trace_in_order_from_each_episodes_own_place():
    trace = [0.1, 0.2, 0.3, 0.4, 0.5]
    clock = Replay(trace)
    starts = set()
    for episode in range(40):
        read = [clock.latency_s(9.0, episode=episode, plan=plan) for plan in range(7)]
        start = trace.index(read[0])
        starts.add(start)
        assert read == [trace[(start + plan) % 5] for plan in range(7)]
        assert read[0] == Replay(trace).latency_s(0.0, episode=episode, plan=0)
    assert starts == set(range(5))
    other = [Replay(trace, seed=1).latency_s(0, episode=e, plan=0) for e in range(40)]
    assert other != [clock.latency_s(0, episode=e, plan=0) for e in range(40)]


@pytest.mark.parametrize("trace", [[], [0.1, -0.1], [float("nan")], [float("inf")]])
def test_impossible_traces_are_refused(trace):
    with pytest.raises(ValueError, match="latenc"):
        Replay(trace)


def test_recorded_trace_leaves_out_cold_calls(tmp_path):
    lines = [{"ms": 900.0, "cold": True}, {"ms": 50.0, "cold": False}, {"ms": 70.0, "cold": False}]
    path = tmp_path / "timing.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert Replay.recorded(path).trace_s == [0.05, 0.07]


def test_modeled_trace_has_its_quantiles():
    trace = Replay.modeled(0.05, 0.12, length=20_000).trace_s
    assert np.median(trace) == pytest.approx(0.05, rel=0.03)
    assert np.quantile(trace, 0.99) == pytest.approx(0.12, rel=0.06)
    with pytest.raises(ValueError, match="median"):
        Replay.modeled(0.2, 0.1)
