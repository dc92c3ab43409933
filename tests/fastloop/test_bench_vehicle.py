"""`fastloop bench vehicle`: a node that is given faults, and what is counted of it."""

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")
pytest.importorskip("PIL", reason="its camera sends JPEG (extra ros)")

from fastloop.bench.vehicle import faults
from fastloop.bench.vehicle.config import VehicleBenchConfig
from fastloop.bench.vehicle.run import _check
from fastloop.deploy.motion import Motion
from fastloop.policies.base import Plan


def survive(tmp_path, monkeypatch, *kinds, seconds=2.4):
    """With each of `kinds`, half a second long."""
    monkeypatch.setattr(faults, "FAULTS", kinds)
    monkeypatch.setattr(faults, "FAULT_S", 0.5)
    monkeypatch.setattr(faults, "WELL_S", 0.2)
    return faults.survive(VehicleBenchConfig(fault_seconds=seconds), tmp_path)


def test_every_tick_has_a_valid_message(tmp_path, monkeypatch):
    survived = survive(tmp_path, monkeypatch, "raises", "transport gone", "garbage")
    assert survived.ticks >= 24 + 1  # the last one ends at rest
    assert (survived.invalid, survived.internal, survived.raised) == (0, 0, [])
    assert sum(rungs.total() for rungs in survived.rungs.values()) >= 24
    assert {"raises", "transport gone", "garbage"} <= set(survived.rungs)
    assert survived.memory[0] > 0


def test_what_nobody_catches_is_told(tmp_path, monkeypatch):
    def trouble(self, gone):
        raise KeyError("nobody catches this")

    monkeypatch.setattr(faults.Trouble, "_send", trouble)
    # Without a state it would wait for ever.
    monkeypatch.setattr(faults.Node, "run", lambda self, ticks: faults.time.sleep(0.3))
    survived = survive(tmp_path, monkeypatch, "missing")
    assert any("nobody catches this" in words for words in survived.raised)


@pytest.mark.parametrize(
    ("times", "points"),
    [
        ([0.0, 0.1], [[0.0] * 5, [np.nan] * 5]),
        ([0.1, 0.0], np.zeros((2, 5))),
        ([0.0], np.zeros((1, 5))),
    ],
)
def test_a_message_that_nobody_can_follow_is_counted(times, points):
    class Sender:
        report = transition = None

        def send(self, motion, stamp_ns):
            """To nobody."""

    survived = faults.Survived()
    judge = faults.Judge(Sender(), None, survived)
    judge.send(Motion(np.array(times), np.array(points)), 0)
    judge.send(Motion(np.array([0.0, 0.1]), np.zeros((2, 5))), 0)
    assert (survived.ticks, survived.invalid) == (2, 1)


def test_a_policy_has_the_faults_of_policies():
    from fastloop.policies.prepare import example_history

    policy = faults.Troubled(10.0)
    history = example_history(policy.spec)
    assert isinstance(policy.plan(history, rng=None), Plan)
    policy.fault = "NaN plan"
    assert policy.plan(history, rng=None).actions.isnan().all()
    policy.fault = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        policy.plan(history, rng=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"fault_seconds": -1.0}, "fault_seconds must be 0 or more"), ({"fault_hz": 0.0}, "positive")],
)
def test_mistakes(changes, words):
    with pytest.raises(ValueError, match=words):
        _check(VehicleBenchConfig(**changes))
