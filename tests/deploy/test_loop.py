"""Every fault of inputs and inference, in virtual time: which rung, which words."""

import math

import numpy as np
import pytest

from fastloop.deploy.motion import SPEED
from fastloop.deploy.worker import Acted, Installed

BODIES = pytest.mark.parametrize("arm", [False, True], ids=["vehicle", "arm"])


def rungs(published):
    return [one.rung for one in published]


@BODIES
def test_every_tick_has_a_fresh_plan(rig, arm):
    machine = rig(arm)
    published = machine.ticks(50)
    assert set(rungs(published)) == {0}
    assert {one.variant for one in published} == {"full"}
    assert [one.tick for one in published] == list(range(50))


@BODIES
def test_transport_gone_goes_down_the_ladder_and_comes_back(rig, arm):
    machine = rig(arm)
    machine.ticks(5)
    machine.deaf = True
    gone = machine.ticks(120)
    assert rungs(gone) == sorted(rungs(gone))
    assert {1, 2} <= set(rungs(gone)) <= {0, 1, 2}
    stopped = next(one for one in gone if one.rung == 2)
    assert "s old" in stopped.reason
    if not arm:
        assert gone[-1].actions[0, SPEED] == 0
    machine.deaf = False
    back = machine.ticks(12)
    assert "recovering: 1 of 3" in back[0].reason
    assert rungs(back)[-1] == 0


@BODIES
@pytest.mark.parametrize("topic", ["/state", "/camera"])
def test_a_topic_that_falls_silent_is_named(rig, arm, topic):
    machine = rig(arm)
    machine.ticks(5)
    machine.silent = {topic}
    worst = machine.ticks(30)[-1]
    assert worst.rung == 2
    assert worst.reason.startswith(f"{topic} is")


@pytest.mark.parametrize("delay", [0.5, 5.0])
def test_late_messages_are_no_observation(rig, delay):
    machine = rig()
    machine.ticks(5)
    machine.delay_s["/camera"] = delay
    published = machine.ticks(8)
    assert max(rungs(published)) >= 1
    assert "/camera is" in published[-1].reason


def test_topics_that_are_apart_are_no_observation(rig):
    machine = rig()
    machine.ticks(5)
    machine.delay_s["/camera"] = 0.25
    assert any("topics are 0.25 s apart" in one.reason for one in machine.ticks(5))


def test_duplicates_and_messages_out_of_order_are_dropped_and_counted(rig):
    machine = rig()
    machine.ticks(3)
    machine.clock.advance(0.01)
    assert machine.send("/state") == ""
    stamp = machine.clock.wall_ns()
    assert machine.send("/state", stamp_ns=stamp) == "duplicate"
    assert machine.send("/state", stamp_ns=stamp - 10_000_000) == "out of order"
    assert machine.inputs.counts["/state", "duplicate"] == 1
    assert machine.inputs.counts["/state", "out of order"] == 1


def test_messages_from_the_future_are_dropped(rig):
    machine = rig()
    machine.ticks(3)
    machine.delay_s = {"/state": -1.0, "/camera": -1.0}
    published = machine.ticks(10)
    assert machine.inputs.counts["/state", "future"] == 10
    assert published[-1].rung >= 1


def test_a_wrong_type_is_dropped(rig):
    machine = rig()
    machine.start()
    sample = machine.inputs._held["/state"].sample
    other = type(sample)("/state", "other/msg/Type", sample.data, None, sample.received_ns)
    assert machine.inputs.offer(other) == "wrong type"


@BODIES
def test_a_state_of_nan_is_dropped_and_the_one_before_stands(rig, arm):
    machine = rig(arm)
    machine.ticks(5)
    machine.garbage = {"/state"}
    assert machine.tick().rung == 0  # a state of 0.1 s ago is good enough
    assert machine.inputs.counts["/state", "bad"] == 1
    assert machine.ticks(30)[-1].rung >= 2


@BODIES
def test_a_truncated_picture_costs_its_plan(rig, arm):
    machine = rig(arm)
    machine.ticks(5)
    machine.garbage = {"/camera"}
    (published,) = machine.ticks(1)
    assert published.rung == 1
    assert "truncated JPEG" in published.reason
    machine.garbage = set()
    assert machine.tick().rung == 0


@BODIES
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("the original words"), "RuntimeError: the original words"),
        (MemoryError("simulated"), "MemoryError: simulated"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyError("observation.state"), "observation.state"),
    ],
)
def test_an_inference_that_raises_is_a_reason(rig, arm, error, words):
    machine = rig(arm)
    machine.ticks(3)
    machine.error = error
    published = machine.ticks(30)
    assert published[0].rung == 1
    assert words in published[0].reason
    assert published[-1].rung == 2
    assert words in machine.loop.last_error
    assert "Traceback" in machine.loop.last_trace
    machine.error = None
    assert machine.ticks(10)[-1].rung == 0


def test_out_of_memory_steps_down_to_a_smaller_variant(rig):
    machine = rig(variants={"full": 0.02, "small": 0.005})
    machine.ticks(2)
    machine.error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    machine.tick()
    machine.error = None
    assert machine.tick().variant == "small"


@BODIES
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda a: a * math.nan, "not finite"),
        (lambda a: a * math.inf, "not finite"),
        (lambda a: a[:, :1], "got ("),
        (lambda a: a[None], "got ("),
        (lambda a: a[:0], ""),
        (lambda a: a + 50.0, ""),
        (lambda a: a + 3 * np.random.default_rng(0).normal(size=a.shape), "at most"),
    ],
)
def test_a_plan_that_is_no_plan_is_refused(rig, arm, answer, words):
    machine = rig(arm)
    machine.ticks(3)
    machine.answer = answer
    published = machine.ticks(30)
    assert published[0].rung == 1
    assert published[0].reason.startswith("plan refused")
    assert words in published[0].reason
    assert published[-1].rung == 2


@BODIES
def test_slower_than_the_period_is_executed_by_consumed_ticks(rig, arm):
    machine = rig(arm, plan_every=4, budget_s=0.4)
    machine.latency = 0.25
    machine.loop.anytime.calibrated["full"] = 0.25
    published = machine.ticks(40)
    assert rungs(published)[:3] == [3, 3, 3]  # before the first plan
    assert machine.loop.rungs[0] > 25
    assert machine.loop.counts["missed its deadline"] == 0
    if arm:  # tick k of a plan that came late is its k-th action
        job = machine.jobs[-1]
        plan = machine._chunk(job.state)
        later = next(one for one in machine.ticks(6) if one.rung == 0 and one.tick >= job.tick + 3)
        expected = machine._chunk(machine.jobs[-2].state)
        at = later.tick - machine.jobs[-2].tick
        assert np.allclose(later.actions[0], expected[at]) or np.allclose(
            later.actions[0], plan[later.tick - job.tick]
        )


@BODIES
def test_a_sudden_slow_inference_misses_and_then_recovers(rig, arm):
    machine = rig(arm)
    machine.ticks(5)
    machine.latency = 0.35
    missed = machine.tick()
    assert missed.rung == 1
    assert missed.reason == "inference is running"
    assert machine.clock.now() <= machine.schedule.time(missed.tick) + 0.07 + 1e-9
    assert "inference has been running" in machine.tick().reason
    machine.latency = 0.01
    assert machine.ticks(12)[-1].rung == 0


@BODIES
def test_an_inference_that_hangs_is_given_up(rig, arm):
    machine = rig(arm, restarts=2)
    machine.ticks(5)
    machine.latency = math.inf
    hung = machine.ticks(25)
    assert hung[-1].rung == 2
    assert machine.loop.counts["hung"] == 1
    machine.latency = 0.01
    assert machine.ticks(30)[-1].rung == 0
    machine.latency = math.inf
    assert "has been running for 5." in machine.ticks(60)[-1].reason
    assert machine.loop.counts["hung"] == 2


def test_a_loop_that_stalls_skips_slots_without_a_burst(rig):
    machine = rig()
    machine.ticks(5)
    machine.stall_s = 0.73
    late, after = machine.tick(), machine.tick()
    assert after.tick - late.tick > 6
    assert machine.schedule.skipped == after.tick - late.tick - 1
    assert machine.tick().tick == after.tick + 1


@BODIES
@pytest.mark.parametrize("jump", [3600.0, -3600.0, 0.3, -0.3])
def test_a_wall_clock_that_jumps_stops_nothing_for_long(rig, arm, jump):
    machine = rig(arm)
    machine.ticks(5)
    machine.clock.set_wall(jump)
    published = machine.ticks(20)
    assert max(rungs(published)) <= 2
    assert published[-1].rung == 0


def test_a_vehicle_that_is_not_where_it_should_be_stops_hard(rig):
    machine = rig()
    machine.ticks(5)
    machine.error = RuntimeError("no plan")  # nothing new that would begin where it is
    machine.pushed = 4.0
    published = machine.tick()
    assert published.rung == 3
    assert "m from the measured place" in published.reason
    assert math.isclose(published.actions[0, 0], machine.inputs.newest_state().point[0] + 0.04)


@BODIES
def test_a_fault_of_the_loop_itself_sends_what_was_prepared(rig, arm, monkeypatch):
    machine = rig(arm)
    machine.ticks(5)
    broken = lambda *args, **kwargs: 1 / 0  # noqa: E731
    monkeypatch.setattr(machine.loop.ladder, "choose", broken)
    published = machine.tick()
    assert published.rung == 3
    assert published.reason == "internal: ZeroDivisionError: division by zero"
    monkeypatch.undo()
    assert machine.ticks(12)[-1].rung == 0


@BODIES
def test_a_stop_that_is_asked_for_ends_at_rest(rig, valid, arm):
    machine = rig(arm)
    machine.ticks(5)
    slot = machine.schedule.following(machine.clock.now())
    published = machine.loop.stop(slot, machine.schedule.time(slot), "SIGTERM")
    valid(published)
    assert (published.rung, published.reason) == (2, "SIGTERM")


def test_no_tick_before_a_state(rig):
    machine = rig()
    assert machine.loop.ready() == "no message on /state yet"
    with pytest.raises(RuntimeError, match="wait until ready"):
        machine.loop.tick(0, 0.0)


@BODIES
def test_history_is_told_every_tick_in_order(rig, arm):
    machine = rig(arm, plan_every=3)
    machine.ticks(10)
    names = [[type(event).__name__ for event in job.events] for job in machine.jobs]
    assert names[0] == ["Observed"]
    assert names[1] == ["Installed", "Acted", *["Observed", "Acted"] * 2, "Observed"]
    assert [job.tick for job in machine.jobs] == [0, 3, 6, 9]


@BODIES
@pytest.mark.parametrize("stalls_s", [0.27, 0.73])
def test_history_is_told_of_skipped_slots(rig, arm, stalls_s):
    machine = rig(arm)
    machine.ticks(5)
    machine.latency, machine.stall_s = 0.15, stalls_s
    machine.ticks(6)
    assert machine.schedule.skipped > 0
    names = [type(event).__name__ for job in machine.jobs for event in job.events]
    ticks = [name for name in names if name != "Installed"]
    assert ticks == ["Observed", "Acted"] * machine.jobs[-1].tick + ["Observed"]
    for job in machine.jobs:
        for place, event in enumerate(job.events):
            if isinstance(event, Installed):  # of the plan of the job before
                acted = [isinstance(one, Acted) for one in job.events[:place]]
                assert sum(acted) == event.late


@BODIES
def test_after_a_very_long_stall_history_begins_anew(rig, arm):
    machine = rig(arm)
    machine.ticks(5)
    machine.stall_s = 30.0
    machine.ticks(2)
    assert machine.jobs[-1].fresh
    assert machine.ticks(12)[-1].rung == 0


def moved_by_others(machine):
    """Deactivated, driven 100 m away within a second, and activated again."""
    machine.loop.stop(machine.schedule.slot, machine.clock.now(), "deactivated")
    machine.clock.advance(1.0)
    machine.point = machine.point + np.array([100.0, 0, 0, 0, 0])
    machine.loop.forget()
    machine.schedule = None


def test_after_a_pause_nothing_is_known_of_where_it_was_commanded_to(rig):
    machine = rig()
    machine.ticks(5)
    moved_by_others(machine)
    machine.start()
    machine.deaf = True
    machine.clock.advance(0.5)  # before anything is commanded
    assert machine.tick().actions[0, 0] > 100


def test_a_plan_from_before_a_pause_is_not_followed(rig):
    machine = rig()
    machine.ticks(5)
    machine.latency = 0.9
    before = machine.tick()
    accepted = machine.loop.counts["plans"]
    machine.loop.forget()
    machine.clock.advance(0.85)
    machine.point = machine.point + np.array([6.8, 0, 0, 0, 0])  # where that plan would be
    machine.schedule = None
    machine.start()
    assert machine.tick().rung == 3
    assert machine.loop.counts["plans"] == accepted
    assert before.rung < 2
