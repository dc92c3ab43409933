"""The fallback ladder: which motion goes out this tick, and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastloop.deploy.bodies import Body
from fastloop.deploy.motion import Motion, State

__all__ = ["FRESH", "HARD_STOP", "SHIFTED", "STOP", "Choice", "Ladder"]

FRESH, SHIFTED, STOP, HARD_STOP = range(4)
"""Rungs: a fresh plan; the plan before it, shifted; comfort stop along it; hard stop, or hold."""


@dataclass(frozen=True)
class Choice:
    """What goes out.

    Attributes:
        rung: `FRESH` to `HARD_STOP`.
        reason: why it is no better rung; empty for a fresh plan.
        motion: from this tick on.
        variant: that made the plan it comes from; empty where there is none.
    """

    rung: int
    reason: str
    motion: Motion
    variant: str


@dataclass(frozen=True)
class _Accepted:
    """A plan in execution. Its stop is for later ticks: it is computed when this one's message is
    out (`Ladder.prepare`), or when it is asked for."""

    motion: Motion
    variant: str
    body: Body
    oldest: float  # monotonic s until which it may be followed
    next_tick: float

    @cached_property
    def leave_by(self) -> float:
        return min(self.body.leave_by(self.motion), self.oldest)

    @cached_property
    def stop(self) -> Motion:
        return self.body.comfort_stop(self.motion, max(self.leave_by, self.next_tick))


class Ladder:
    """Holds the plan in execution with the stop that ends it, and goes down and up the rungs.

    A fresh plan is followed as it is. Shifted, it is followed while its rest suffices for a comfort
    stop and it is not older than `max_plan_age_s`; from there on the stop that was computed when it
    was accepted. A machine that is not where it should be, or that never had a plan, stops hard. A
    stop is left when `recover_after` plans in a row have passed the gate.

    Args:
        body: what moves.
        period_s: of the loop.
        max_plan_age_s: how long a plan is followed after its observation.
        recover_after: plans.
        state_age_s: a state older than this proves nothing.
    """

    def __init__(
        self,
        body: Body,
        *,
        period_s: float,
        max_plan_age_s: float = 1.0,
        recover_after: int = 3,
        state_age_s: float = 0.3,
    ) -> None:
        self.body = body
        self.period_s = period_s
        self.max_plan_age_s = max_plan_age_s
        self.recover_after = recover_after
        self.state_age_s = state_age_s
        self.plan: _Accepted | None = None
        self.stopping: Choice | None = None
        self.recovered = 0
        self.commanded: Motion | None = None
        self.spare: Motion | None = None

    def forget(self) -> None:
        """Nobody follows what was planned and commanded any more."""
        self.plan = self.stopping = self.commanded = None

    def accept(
        self, motion: Motion, *, observed: float, variant: str, state: State, t: float
    ) -> str:
        """Take a new plan in execution, unless something speaks against it.

        Args:
            motion: of the plan.
            observed: monotonic s of what it was planned on.
            variant: that made it.
            state: the newest measured one.
            t: now, monotonic s.

        Returns:
            what speaks against it, or nothing.
        """
        faults = self.body.faults(motion)
        if not faults and motion.end <= t:
            faults = [f"it ended {t - motion.end:.2f} s ago"]
        if not faults and self._young(state, t) and (apart := self.body.apart(motion, state, t)):
            faults = [apart]
        if faults:
            self.recovered = 0
            return "; ".join(faults)
        oldest = observed + self.max_plan_age_s
        self.plan = _Accepted(motion, variant, self.body, oldest, t + self.period_s)
        self.recovered += 1
        return ""

    def choose(self, t: float, state: State, *, fresh: bool, why: str) -> Choice:
        """What goes out at `t`.

        Args:
            t: monotonic s of the tick.
            state: the newest measured one.
            fresh: whether the plan in execution is as new as it should be.
            why: it is not.
        """
        choice = self._go(t, state, fresh, why)
        self.commanded = choice.motion
        return choice

    def _go(self, t: float, state: State, fresh: bool, why: str) -> Choice:
        if self.stopping is not None and not (fresh and self.recovered >= self.recover_after):
            return self._stop_on(t, state, why or self._recovering())
        if self.plan is None:
            return self._halt(t, state, why or "no plan yet")
        self.stopping = None
        if self._young(state, t) and (apart := self.body.apart(self.plan.motion, state, t)):
            return self._halt(t, state, f"the plan is {apart}")
        if fresh and t < self.plan.motion.end:
            return Choice(FRESH, "", self._rest(self.plan.motion, t), self.plan.variant)
        if t <= self.plan.leave_by:
            return Choice(SHIFTED, why, self._rest(self.plan.motion, t), self.plan.variant)
        self.recovered = 0
        stop = self.plan.stop
        if not 0 <= t - stop.times[0] <= self.period_s:  # it was meant for another tick
            stop = self.body.comfort_stop(self.plan.motion, t)
        self.stopping = Choice(STOP, why, stop, self.plan.variant)
        return Choice(STOP, why, self._rest(stop, t), self.plan.variant)

    def stop(self, t: float, state: State, why: str) -> Choice:
        """A comfort stop from now on, asked for; a hard one where there is no plan to stop on."""
        if self.stopping is None and self.plan is not None and t < self.plan.motion.end:
            motion = self.body.comfort_stop(self.plan.motion, t)
            self.stopping = Choice(STOP, why, motion, self.plan.variant)
        self.recovered = 0
        self.commanded = (choice := self._stop_on(t, state, why)).motion
        return choice

    def prepare(self, t: float, state: State) -> Motion:
        """Compute the last rung as it would go out at `t`, and the stop of the plan in execution,
        before they are needed."""
        along = None if self.plan is None else self.plan.motion
        self.spare = self.body.hard_stop(self._start(t, state), t, along)
        if self.plan is not None:
            _ = self.plan.stop
        return self.spare

    def last_resort(self, t: float, why: str) -> Choice | None:
        """The last rung as it was prepared, for when nothing else can be computed."""
        if self.spare is None:
            return None
        self.stopping = Choice(HARD_STOP, why, self.spare, "")
        self.recovered = 0
        self.commanded = motion = self._rest(self.spare, t)
        return Choice(HARD_STOP, why, motion, "")

    def _stop_on(self, t: float, state: State, why: str) -> Choice:
        """Go on with the stop in execution, or with a new one where the machine has left it."""
        stop = self.stopping
        if stop is None:
            return self._halt(t, state, why)
        if self._young(state, t) and (apart := self.body.apart(stop.motion, state, t)):
            return self._halt(t, state, f"the stop is {apart}")
        return Choice(stop.rung, why, self._rest(stop.motion, t), stop.variant)

    def _halt(self, t: float, state: State, why: str) -> Choice:
        along = None if self.plan is None else self.plan.motion
        motion = self.body.hard_stop(self._start(t, state), t, along)
        if self.stopping is None:
            self.recovered = 0
        self.stopping = Choice(HARD_STOP, why, motion, "")
        return Choice(HARD_STOP, why, motion, "")

    def _start(self, t: float, state: State) -> State:
        """Where the machine is: as measured, or as commanded where that is too long ago."""
        if self._young(state, t) or self.commanded is None:
            return state
        return State(t, self.commanded.at(t), np.zeros_like(state.rate))

    def _recovering(self) -> str:
        return f"recovering: {self.recovered} of {self.recover_after} good plans in a row"

    def _young(self, state: State, t: float) -> bool:
        return t - state.time <= self.state_age_s

    def _rest(self, motion: Motion, t: float) -> Motion:
        return motion.since(t, step_s=self.period_s)
