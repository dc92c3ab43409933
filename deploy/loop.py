"""One tick of the on-vehicle loop: look, plan beside it, choose a rung, always with an answer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from fastloop.deploy.anytime import Anytime
from fastloop.deploy.clock import Clock
from fastloop.deploy.health.stages import Stages
from fastloop.deploy.inputs import Inputs, Snapshot
from fastloop.deploy.ladder import STOP, Choice, Ladder
from fastloop.deploy.motion import Floats, Motion, State
from fastloop.deploy.worker import Acted, Event, Installed, Job, Observed, Outcome, Worker

__all__ = ["Loop", "LoopConfig", "Published"]


@dataclass(frozen=True)
class LoopConfig:
    """When things happen in a tick.

    Attributes:
        period_s: between ticks.
        deadline_s: from the tick's slot until its message has to be out.
        epsilon_s: kept for choosing and publishing: a plan is waited for until that much before.
        plan_every: ticks from one plan to the next; a plan in execution for longer is no fresh one.
        budget_s: what a plan may take; 0 for `deadline_s`. A plan that takes longer than the
            deadline arrives in a later tick, its first actions consumed.
        hang_s: an inference that takes longer is given up.
        restarts: inferences given up; the next one that hangs is waited for.
    """

    period_s: float = 0.1
    deadline_s: float = 0.08
    epsilon_s: float = 0.01
    plan_every: int = 1
    budget_s: float = 0.0
    hang_s: float = 2.0
    restarts: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_s < self.deadline_s <= self.period_s:
            raise ValueError(
                "need 0 < epsilon_s < deadline_s <= period_s, got "
                f"{self.epsilon_s}, {self.deadline_s} and {self.period_s}"
            )
        if self.plan_every < 1 or self.hang_s <= 0:
            raise ValueError(
                f"need plan_every >= 1 and hang_s > 0, got {self.plan_every} and {self.hang_s}"
            )


@dataclass(frozen=True, slots=True)
class Published:
    """What goes out in one tick.

    Attributes:
        tick: its slot.
        rung: of the fallback ladder, 0 to 3.
        reason: why it is no better rung; empty for a fresh plan.
        variant: of the policy that made the plan; empty for a stop without one.
        actions: (T, D) the motion's points: of a vehicle x, y (m), heading (rad), speed (m/s),
            acceleration (m/s^2) in the frame of its odometry; of an arm joint positions (rad).
        times: (T,) seconds from `stamp_ns` on, the first one 0.
        stamp_ns: nanoseconds since 1970 of the tick's slot.
    """

    tick: int
    rung: int
    reason: str
    variant: str
    actions: Floats
    times: Floats
    stamp_ns: int


class Loop:
    """The loop as a state machine over a clock: the node calls it in real time, replay and tests in
    virtual time.

    Args:
        inputs: what was received.
        worker: what plans.
        ladder: of fallbacks.
        anytime: chooses the variant.
        clock: of the loop.
        config: when things happen.
        stages: where the time goes.
    """

    def __init__(
        self,
        inputs: Inputs,
        worker: Worker,
        ladder: Ladder,
        anytime: Anytime,
        clock: Clock,
        config: LoopConfig,
        stages: Stages | None = None,
    ) -> None:
        self.inputs = inputs
        self.worker = worker
        self.ladder = ladder
        self.anytime = anytime
        self.clock = clock
        self.config = config
        self.stages = stages or Stages()
        self.counts: Counter[str] = Counter()
        self.rungs: Counter[int] = Counter()
        self.last_error = ""
        self.last_trace = ""
        self.last_outcome: Outcome | None = None
        self._forget()
        self._began = 0.0  # monotonic s since which plans count
        self._installed: int | None = None  # slot in which the plan in execution was
        self.given_up = 0
        self._state: State | None = None

    def _forget(self) -> None:
        self._events: list[Event] = []
        self._fresh_episode = True
        self._snapshot: Snapshot | None = None
        self._tick: int | None = None  # whose observation is the last event of its kind
        self._overridden = False  # what was done in it

    def forget(self) -> None:
        """Begin anew after a pause, in which others have driven: what was seen and planned before
        it counts no longer, nor does the stop with which it began."""
        self._forget()
        self._began = self.clock.now()
        self._installed = None
        self.ladder.forget()

    def ready(self) -> str:
        """Why the first tick cannot have a valid message yet; empty when it can."""
        state = self.inputs.newest_state()
        if state is None:
            return self.inputs.missing(self.inputs.state)
        now = self.clock.now()
        if now - state.time > self.ladder.state_age_s:
            return f"the state on {self.inputs.state} is {now - state.time:.2f} s old"
        self._state = state
        self.ladder.prepare(now, state)
        return ""

    def tick(self, slot: int, t: float) -> Published:
        """The message of slot `slot`, due at monotonic `t`: at the latest at its deadline, less
        `epsilon_s` if a plan was waited for.

        Raises:
            RuntimeError: `ready` never said yes.
        """
        self.stages.record("lateness", max(0.0, self.clock.now() - t))
        try:
            why = self._plan(slot, t)
            chosen = self._choose(slot, t, why)
        except Exception as error:  # a fault of ours must not silence the vehicle
            chosen = self._last_resort(t, error)
        self._lived_through(chosen)
        return self._publish(slot, t, chosen)

    def stop(self, slot: int, t: float, why: str) -> Published:
        """The message of a slot in which the machine shall come to rest."""
        try:
            self._state = self.inputs.newest_state() or self._state
            chosen = self.ladder.stop(t, self._known(), why)
        except Exception as error:
            chosen = self._last_resort(t, error)
        return self._publish(slot, t, chosen)

    def prepare(self, t: float) -> Motion | None:
        """Compute the last rung as it would go out at `t`; None when even that fails."""
        try:
            return self.ladder.prepare(t, self._known())
        except Exception as error:
            self._note(error)
            return None

    def _plan(self, slot: int, t: float) -> str:
        """Take the plan that has come, ask for another; why there is no fresh one."""
        self._state = self.inputs.newest_state() or self._state
        self._catch_up(slot)
        why = ""
        if (outcome := self.worker.wait(self.clock.now())) is not None:
            why = self._take(outcome, slot, t)
        busy = self.worker.busy_for()
        if busy is not None and busy > self.config.hang_s and self.given_up < self.config.restarts:
            self._give_up(busy)
            busy = None
        looked = self.inputs.look()
        seen = isinstance(looked, Snapshot)
        if isinstance(looked, Snapshot):
            self._snapshot = looked
        if self._snapshot is not None:
            self._events.append(Observed(self._snapshot))
            self._tick = slot
        if not seen:
            self.counts["unfit inputs"] += 1
            return str(looked)
        if busy is not None:
            self.counts["ran into the next tick"] += 1
            return why or f"inference has been running for {busy:.3f} s"
        if not self._due(slot):
            return why
        self._submit(slot, t)
        until = t + self.config.deadline_s - self.config.epsilon_s
        wait = self.anytime.expected(self.anytime.current) <= until - self.clock.now()
        outcome = self.worker.wait(until if wait else self.clock.now())
        if outcome is not None:
            return self._take(outcome, slot, t)
        self.counts["missed its deadline"] += int(wait)
        return why or "inference is running"

    def _catch_up(self, slot: int) -> None:
        """In slots that were skipped nothing new was seen, and what was done went on."""
        if self._snapshot is None or self._tick is None:
            return
        if (skipped := slot - self._tick - 1) > 64:  # what was so long ago is no history
            self._forget()
        else:
            self._events += [Observed(self._snapshot), Acted(self._overridden)] * skipped

    def _due(self, slot: int) -> bool:
        """By consumed ticks: the next plan has to begin so early that it comes when it is due."""
        if self._installed is None:
            return True
        expected = self.anytime.expected(self.anytime.current)
        at_once = expected <= self.config.deadline_s - self.config.epsilon_s
        ahead = 0 if at_once else math.ceil(expected / self.config.period_s)
        return slot - self._installed + ahead >= self.config.plan_every

    def _submit(self, slot: int, t: float) -> None:
        snapshot = self._snapshot
        assert snapshot is not None
        now = self.clock.now()
        deadline = t + (self.config.budget_s or self.config.deadline_s - self.config.epsilon_s)
        variant = self.anytime.choose(deadline - now)
        self.stages.record("capture_age", now - snapshot.oldest)
        job = Job(
            slot, t, tuple(self._events), self._fresh_episode, snapshot.states[-1], variant,
            deadline, now,
        )  # fmt: skip
        self._events, self._fresh_episode = [], False
        self.worker.submit(job)

    def _take(self, outcome: Outcome, slot: int, t: float) -> str:
        """Put a plan into execution; why not."""
        job, self.last_outcome = outcome.job, outcome
        if job.submitted < self._began:
            return "the plan is from before a pause"
        self.stages.record("queue", outcome.began - job.submitted)
        if outcome.planned is None:
            self.counts["failed"] += 1
            self.last_error, self.last_trace = outcome.error, outcome.trace
            if "out of memory" in outcome.error or outcome.error.startswith("MemoryError"):
                self.anytime.failed()
            return outcome.error
        self.anytime.learn(job.variant, outcome.ended - job.submitted)
        for stage, seconds in outcome.planned.seconds.items():
            self.stages.record(stage, seconds)
        began = self.clock.now()
        try:
            motion = self.ladder.body.motion(
                outcome.planned.actions, state=job.state, time=job.time,
                period_s=self.config.period_s,
            )  # fmt: skip
            refused = self.ladder.accept(
                motion, observed=job.time, variant=job.variant, state=self._known(), t=t
            )
        except ValueError as error:
            refused = str(error)
        except Exception as error:  # of no known shape at all
            refused = f"{type(error).__name__}: {error}"
        self.stages.record("post", self.clock.now() - began)
        if refused:
            self.counts["refused by the gate"] += 1
            return f"plan refused: {refused}"
        self.counts["plans"] += 1
        late = slot - job.tick
        self._events.append(Installed(late))
        self._installed = slot
        return ""

    def _choose(self, slot: int, t: float, why: str) -> Choice:
        installed = self._installed
        fresh = installed is not None and slot - installed < self.config.plan_every
        if installed is not None and not fresh and not why:
            why = f"the plan is {slot - installed} ticks old"
        return self.ladder.choose(t, self._known(), fresh=fresh, why=why)

    def _lived_through(self, chosen: Choice) -> None:
        if self._snapshot is not None:
            self._overridden = chosen.rung >= STOP
            self._events.append(Acted(self._overridden))
        if len(self._events) > 1024:  # a policy that has not planned for so long begins anew
            self._forget()

    def _publish(self, slot: int, t: float, chosen: Choice) -> Published:
        self.rungs[chosen.rung] += 1
        motion = chosen.motion
        stamp = self.clock.wall_ns() - round((self.clock.now() - t) * 1e9)
        return Published(
            slot, chosen.rung, chosen.reason, chosen.variant, motion.points,
            motion.times - motion.times[0], stamp,
        )  # fmt: skip

    def _give_up(self, busy_s: float) -> None:
        self.counts["hung"] += 1
        self.given_up += 1
        self.last_error = f"inference gave no answer for {busy_s:.2f} s"
        self._forget()
        self.worker.abandon()

    def _known(self) -> State:
        if self._state is None:
            raise RuntimeError("ticking before a state was measured: wait until ready() is empty")
        return self._state

    def _last_resort(self, t: float, error: Exception) -> Choice:
        self._note(error)
        why = f"internal: {self.last_error}"
        chosen = self.ladder.last_resort(t, why)
        if chosen is None:
            raise RuntimeError(why) from error
        return chosen

    def _note(self, error: Exception) -> None:
        self.counts["internal errors"] += 1
        self.last_error = f"{type(error).__name__}: {error}"
