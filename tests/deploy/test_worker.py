"""The planning thread: one job at a time, and nothing that happens in it reaches the loop."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from fastloop.deploy.clock import WallClock
from fastloop.deploy.motion import State
from fastloop.deploy.worker import Job, Planned, ThreadWorker, hangs


def job(tick=0):
    state = State(0.0, np.zeros(5), np.zeros(1))
    return Job(tick, 0.0, (), False, state, "full", 1.0, WallClock().now())


@pytest.fixture
def worker():
    """Makes workers, and ends them."""
    made = []

    def make(planner):
        made.append(ThreadWorker(lambda: planner, WallClock()))
        return made[-1]

    yield make
    for one in made:
        one.close()


def soon():
    return WallClock().now() + 10


def test_plans_come_back_once(worker):
    one = worker(lambda job: Planned(np.full((1, 1), job.tick)))
    for tick in range(3):
        one.submit(job(tick))
        outcome = one.wait(soon())
        assert outcome.planned.actions[0, 0] == tick
        assert one.wait(soon()) is None
        assert one.busy_for() is None


@pytest.mark.parametrize("error", [ValueError("words"), SystemExit(1), KeyboardInterrupt()])
def test_what_is_raised_is_told_and_the_next_job_is_planned(worker, error):
    errors = [error]

    def plan(job):
        if errors:
            raise errors.pop()
        return Planned(np.zeros((1, 1)))

    one = worker(plan)
    one.submit(job())
    outcome = one.wait(soon())
    assert outcome.error == f"{type(error).__name__}: {error}"
    assert "Traceback" in outcome.trace
    one.submit(job())
    assert one.wait(soon()).error == ""


def test_a_second_job_in_flight_is_refused(worker):
    gate = threading.Event()
    one = worker(lambda job: gate.wait(10) and Planned(np.zeros((1, 1))))
    one.submit(job())
    assert one.wait(WallClock().now() + 0.01) is None
    with pytest.raises(RuntimeError, match="in flight"):
        one.submit(job())
    gate.set()


def test_a_hang_is_left_behind(worker):
    gates = [threading.Event(), threading.Event()]
    gates[1].set()

    def plan(job):
        gates[job.tick].wait(30)
        return Planned(np.full((1, 1), job.tick))

    one = worker(plan)
    one.submit(job(0))
    assert one.wait(WallClock().now() + 0.01) is None
    one.abandon()
    assert one.busy_for() is None
    one.submit(job(1))
    gates[0].set()  # the lost plan comes now, and is nobody's
    assert one.wait(soon()).planned.actions[0, 0] == 1


def test_a_planner_that_cannot_be_made_is_an_error_of_every_job():
    def make():
        raise OSError("no weights")

    one = ThreadWorker(make, WallClock())
    for _ in range(2):
        one.submit(job())
        assert one.wait(soon()).error == "OSError: no weights"
    one.close()


def test_the_end_waits_for_a_plan_in_flight():
    begun, ended = threading.Event(), threading.Event()

    def plan(job):
        begun.set()
        ended.wait(0.2)
        ended.set()
        return Planned(np.zeros((1, 1)))

    one = ThreadWorker(lambda: plan, WallClock())
    one.submit(job())
    assert begun.wait(10)
    assert hangs()
    one.close()
    assert ended.is_set()
    assert not hangs()


PROCESS = """
import atexit, sys, threading
from fastloop import cli
import fastloop.deploy.worker
hung = threading.Event()
if {hangs}:
    threading.Thread(target=hung.wait, name="planner-0", daemon=True).start()
atexit.register(print, "in order")
cli.main = lambda: print("said") or 7
cli.command()
"""


@pytest.mark.parametrize("hanging", [False, True])
def test_a_hung_thread_does_not_change_how_the_command_ends(hanging):
    program = [sys.executable, "-c", PROCESS.format(hangs=hanging)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 7
    assert ended.stdout.split("\n")[:-1] == (["said"] if hanging else ["said", "in order"])
