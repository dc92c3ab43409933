"""One inference in flight, beside the loop: a hang or an exception is a reason, never a crash."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from fastloop.accel.report import AccelReport
from fastloop.deploy.clock import Clock, VirtualClock
from fastloop.deploy.inputs import Snapshot
from fastloop.deploy.motion import Floats, State

__all__ = [
    "Acted",
    "Event",
    "InlineWorker",
    "Installed",
    "Job",
    "Observed",
    "Outcome",
    "Planned",
    "Planner",
    "ThreadWorker",
    "Worker",
    "hangs",
]

THREAD = "planner-"  # what the names of planning threads begin with
CLOSE_S = 1.0  # for a job in flight to end, when all ends


@dataclass(frozen=True)
class Observed:
    """A tick began with this snapshot; where nothing new could be seen, with the last one."""

    snapshot: Snapshot


@dataclass(frozen=True)
class Installed:
    """The plan of the last job is executed from now on; its first `late` ticks have passed."""

    late: int


@dataclass(frozen=True)
class Acted:
    """A tick's action was executed; not as planned where `overridden`."""

    overridden: bool


Event = Observed | Installed | Acted


@dataclass(frozen=True)
class Job:
    """A plan that is wanted.

    Attributes:
        tick, time: of the newest observation; the slot, and monotonic s.
        events: what happened since the last job, in order; the last one is `Observed`.
        fresh: forget what was before them.
        state: measured at `time`.
        variant: of the policy that shall decide.
        deadline: monotonic s at which the plan is needed.
        submitted: monotonic s.
    """

    tick: int
    time: float
    events: tuple[Event, ...]
    fresh: bool
    state: State
    variant: str
    deadline: float
    submitted: float


@dataclass(frozen=True)
class Planned:
    """What the policy decided.

    Attributes:
        actions: (T, A) float64, as they would be executed from the job's tick on.
        report: of the accelerator.
        seconds: of the stages ``preprocess`` and ``model``.
        text: that the policy wrote.
    """

    actions: Floats
    report: AccelReport = field(default_factory=AccelReport)
    seconds: dict[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: that was submitted.
        planned: None where it failed.
        error: the exception's own words; empty where there was none.
        trace: its traceback.
        began, ended: monotonic s.
    """

    job: Job
    planned: Planned | None
    error: str
    trace: str
    began: float
    ended: float


Planner = Callable[[Job], Planned]


class Worker(Protocol):
    """Plans one job at a time."""

    def busy_for(self) -> float | None:
        """Seconds since the job in flight was submitted; None when there is none."""
        ...

    def submit(self, job: Job) -> None:
        """Begin `job`; only when idle."""
        ...

    def wait(self, until: float) -> Outcome | None:
        """The outcome of the job in flight, once, if there is one by monotonic `until`; without a
        job in flight it returns at once."""
        ...

    def abandon(self) -> None:
        """Give up the job in flight, whose outcome will never be told; the next one is planned
        by a new planner."""
        ...

    def close(self) -> None:
        """End; waits for a job in flight, but not long."""
        ...


def attempt(planner: Planner, job: Job, clock: Clock) -> Outcome:
    """Plan, whatever happens."""
    began = clock.now()
    try:
        planned: Planned | None = planner(job)
        error = trace = ""
    except BaseException as raised:  # a policy's exit must not end the loop either
        planned, error = None, f"{type(raised).__name__}: {raised}"
        trace = traceback.format_exc()
    return Outcome(job, planned, error, trace, began, clock.now())


def hangs() -> bool:
    """Whether a planner's thread still runs in this process."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


class ThreadWorker:
    """Plans in a thread.

    A thread that hangs cannot be ended: `abandon` leaves it behind and starts another.

    Args:
        make_planner: makes what plans, in the thread that will call it.
        clock: of the loop.
    """

    def __init__(self, make_planner: Callable[[], Planner], clock: Clock) -> None:
        self._make_planner = make_planner
        self._clock = clock
        self._changed = threading.Condition()
        self._generation = 0
        self._job: Job | None = None
        self._taken = False
        self._outcome: Outcome | None = None
        self._closed = False
        self._start()

    def _start(self) -> None:
        name = f"{THREAD}{self._generation}"
        self._thread = threading.Thread(
            target=self._run, args=(self._generation,), name=name, daemon=True
        )
        self._thread.start()

    def _run(self, generation: int) -> None:
        planner: Planner | None = None
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._mine(generation) is not None or self._left(generation)
                )
                if self._left(generation):
                    return
                job = self._job
                self._taken = True
            assert job is not None

            def plan(job: Job) -> Planned:
                nonlocal planner
                planner = planner or self._make_planner()
                return planner(job)

            outcome = attempt(plan, job, self._clock)
            with self._changed:
                if self._left(generation):
                    return
                self._outcome = outcome
                self._changed.notify_all()

    def _mine(self, generation: int) -> Job | None:
        return None if self._taken or generation != self._generation else self._job

    def _left(self, generation: int) -> bool:
        return self._closed or generation != self._generation

    def busy_for(self) -> float | None:
        """See `Worker`."""
        with self._changed:
            return None if self._job is None else self._clock.now() - self._job.submitted

    def submit(self, job: Job) -> None:
        """See `Worker`."""
        with self._changed:
            if self._job is not None:
                raise RuntimeError("a plan is still in flight")
            self._job, self._taken = job, False
            self._changed.notify_all()

    def wait(self, until: float) -> Outcome | None:
        """See `Worker`."""
        with self._changed:
            if self._job is None:
                return None
            if self._outcome is None:
                self._changed.wait_for(
                    lambda: self._outcome is not None, max(0.0, until - self._clock.now())
                )
            outcome, self._outcome = self._outcome, None
            if outcome is not None:
                self._job = None
            return outcome

    def abandon(self) -> None:
        """See `Worker`."""
        with self._changed:
            self._generation += 1
            self._job = self._outcome = None
            self._changed.notify_all()
        self._start()

    def close(self) -> None:
        """See `Worker`. An interpreter that ends while a thread is inside of torch aborts."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)


class InlineWorker:
    """Plans at once, and lets the plan arrive as much later in virtual time as it took.

    Args:
        make_planner: makes what plans.
        clock: virtual.
        latency: seconds that a plan takes instead of those measured; infinite for one that hangs.
    """

    def __init__(
        self,
        make_planner: Callable[[], Planner],
        clock: VirtualClock,
        latency: Callable[[Job], float] | None = None,
    ) -> None:
        self._make_planner = make_planner
        self._planner = make_planner()
        self._clock = clock
        self._latency = latency
        self._outcome: Outcome | None = None

    def busy_for(self) -> float | None:
        """See `Worker`."""
        return None if self._outcome is None else self._clock.now() - self._outcome.job.submitted

    def submit(self, job: Job) -> None:
        """See `Worker`."""
        if self._outcome is not None:
            raise RuntimeError("a plan is still in flight")
        began = perf_counter()
        done = attempt(self._planner, job, self._clock)
        took = self._latency(job) if self._latency else perf_counter() - began
        self._outcome = Outcome(
            job, done.planned, done.error, done.trace, done.began, done.began + took
        )

    def wait(self, until: float) -> Outcome | None:
        """See `Worker`."""
        outcome = self._outcome
        if outcome is None:
            return None
        self._clock.sleep_until(min(until, outcome.ended))
        if outcome.ended > self._clock.now():
            return None
        self._outcome = None
        return outcome

    def abandon(self) -> None:
        """See `Worker`."""
        self._outcome = None
        self._planner = self._make_planner()

    def close(self) -> None:
        """See `Worker`."""
