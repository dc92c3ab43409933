"""The node: topics in, a plan out every tick, health on the side; from loading to the last stop."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from fastloop.deploy.clock import Clock
from fastloop.deploy.health.status import Health, details, health_of
from fastloop.deploy.lifecycle import Asked, Lifecycle
from fastloop.deploy.loop import Loop, Published
from fastloop.deploy.motion import Motion
from fastloop.deploy.schedule import Schedule
from fastloop.deploy.systemd import Systemd
from fastloop.deploy.transport.base import LATCHED, SENSOR, Sample, Transport
from fastloop.deploy.watchdog import Watchdog

__all__ = ["Listener", "Node", "NodeSender"]

POLL_S = 0.02  # while it waits for weights or for the first state
REPORT_S = 1.0
COLLECT_S = 10.0
FINISHED = -1  # in the place of a signal's number


class NodeSender(Protocol):
    """Publishes for the node."""

    def send(self, motion: Motion, stamp_ns: int) -> None:
        """The plan: `motion`, whose first moment is `stamp_ns`; raises OSError."""
        ...

    def report(self, status: Health, stamp_ns: int) -> None:
        """On ``/diagnostics``; raises OSError."""
        ...

    def transition(self, transition: str, before: str, after: str, stamp_ns: int) -> None:
        """Of the lifecycle, from one state to another; raises OSError."""
        ...


class Listener(Protocol):
    """Is told of all that comes and goes: a flight recorder, a log."""

    def received(self, sample: Sample) -> None:
        """In a thread of the transport's; must be quick."""
        ...

    def published(self, published: Published) -> None:
        """In the idle part of a tick."""
        ...

    def faults(self) -> list[str]:
        """What went wrong, in words."""
        ...

    def close(self) -> None:
        """The node has ended."""
        ...


class Node:
    """A managed node round a `Loop`.

    It loads in a thread while it reports, becomes active when the first state is there, and from
    then on publishes in every tick, until it is told to stop: then one last plan, which ends at
    rest. What others ask of its `lifecycle` it does between two ticks.

    Args:
        build: loads the policy, warms it up and makes the loop; may take minutes.
        transport: brings what the loop's inputs subscribe to.
        sender: publishes.
        clock: of the loop.
        watchdog: a process that takes over when this one falls silent.
        listeners: of what comes and goes.
        name: of the node, in its reports.
        quiet_gc: leave garbage to the idle part of ticks; it then belongs to the node alone.
        autostart: configure and activate without being asked; one that cannot be configured then
            ends. Otherwise it waits to be asked.
        systemd: is told of its state.
    """

    def __init__(
        self,
        build: Callable[[], Loop],
        transport: Transport,
        sender: NodeSender,
        clock: Clock,
        *,
        watchdog: Watchdog | None = None,
        listeners: Sequence[Listener] = (),
        name: str = "fastloop",
        quiet_gc: bool = True,
        autostart: bool = True,
        systemd: Systemd | None = None,
    ) -> None:
        self.build = build
        self.transport = transport
        self.sender = sender
        self.clock = clock
        self.watchdog = watchdog
        self.listeners = listeners
        self.name = name
        self.quiet_gc = quiet_gc
        self.autostart = autostart
        self.systemd = systemd or Systemd({})
        self.lifecycle = Lifecycle(listeners=[self._went])
        self.loop: Loop | None = None
        self.schedule: Schedule | None = None
        self.error = ""
        self.trace = ""
        self.waiting = ""
        self.unsent = 0
        self.mute = ""  # why the last plan could not be sent
        self.fell = False
        self.last: Published | None = None
        self._stop = 0
        self._listening = False
        self._collected = clock.now()
        self._reported: tuple[float, tuple[object, ...]] = (-1e9, ())

    def finish(self) -> None:
        """End after this tick: there is nothing more to come."""
        self._stop = self._stop or FINISHED

    def stop(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """End soon; asked a second time, at once."""
        if self._stop > 0:
            os._exit(130)
        self._stop = signum

    def run(self, *, ticks: int | None = None) -> int:
        """From unconfigured to finalized.

        Args:
            ticks: after which it ends by itself; None for never.

        Returns:
            0; 1 when the loop could not be built; 130 after Ctrl-C.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, self.stop)
        try:
            if self.autostart:
                if not self._configure():
                    return 1 if not self._stop else 130 * (self._stop == signal.SIGINT)
                self.lifecycle.ask("activate")
            self.systemd.ready()
            while not self._stop:
                if (asked := self.lifecycle.heard()) is not None:
                    self._take(asked, ticks)
                self._report()
                self.clock.sleep_until(self.clock.now() + POLL_S)
            return 130 * (self._stop == signal.SIGINT)
        except BaseException:
            self.fell = True
            raise
        finally:
            self._shut_down()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, asked: Asked, ticks: int | None) -> None:
        """Do what is asked for and allowed."""
        if asked.transition == "configure":
            asked.answer(self._configure())
        elif asked.transition == "activate":
            active = self._activate()
            asked.answer(active)
            if active:
                self._spin(ticks)
        elif asked.transition == "cleanup":
            self._clean_up()
            asked.answer(True)
        else:
            self.finish()
            asked.answer(True)

    def _clean_up(self) -> None:
        loop, self.loop = self.loop, None
        self.last = self.schedule = None
        assert loop is not None
        loop.worker.close()
        self.lifecycle.go("cleanup")

    def _end_if_asked(self) -> None:
        """While something takes long, a shutdown is all that may be asked for."""
        if (asked := self.lifecycle.heard()) is not None:
            self._take(asked, None)

    def _configure(self) -> bool:
        """Load in a thread, reporting; whether there is a loop then."""
        self.error = self.trace = ""
        self.lifecycle.go("configure")

        def load() -> None:
            loop = None
            try:
                loop = self.build()
                if self.watchdog is not None and not self.watchdog.alive():
                    self.watchdog.start()
            except BaseException as error:
                self.error = f"{type(error).__name__}: {error}"
                self.trace = traceback.format_exc()
                if loop is not None:
                    loop.worker.close()
            else:
                self.loop = loop

        thread = threading.Thread(target=load, name="loading", daemon=True)
        thread.start()
        while thread.is_alive() and not self._stop:
            thread.join(POLL_S)
            self._end_if_asked()
            self._report()
        self.waiting = ""
        if self._stop:
            return False
        self.lifecycle.go("fail" if self.trace else "succeed")
        self._report(force=True)
        return not self.trace

    def _activate(self) -> bool:
        """Listen, and wait for the first state; whether it came before a stop."""
        loop = self.loop
        assert loop is not None
        if self.quiet_gc:
            gc.collect()  # before there is a state to grow old meanwhile
        if not self._listening:
            for topic in loop.inputs.topics:
                # What is said once may have been said before.
                qos = LATCHED if topic.max_age_s is None else SENSOR
                self.transport.subscribe(topic.name, topic.type, self._received, qos)
            self._listening = True
        loop.forget()
        self.lifecycle.go("activate")
        while (waiting := loop.ready()) and not self._stop:
            self.waiting = waiting
            self._end_if_asked()
            self._report()
            self.clock.sleep_until(self.clock.now() + POLL_S)
        self.waiting = ""
        if self._stop:
            return False
        self.lifecycle.go("succeed")
        return True

    def _received(self, sample: Sample) -> None:
        if (loop := self.loop) is None:
            return
        loop.inputs.offer(sample)
        for listener in self.listeners:
            listener.received(sample)

    def _spin(self, ticks: int | None) -> None:
        loop = self.loop
        assert loop is not None
        period = loop.config.period_s
        if self.quiet_gc:
            gc.freeze()
            gc.disable()
        if self.schedule is None:
            self.schedule = Schedule(self.clock.now(), period)
        else:
            self.schedule.resume(self.clock.now())
        schedule = self.schedule
        count = 0
        while not self._stop and (ticks is None or count < ticks):
            if (asked := self.lifecycle.heard()) is not None:
                break
            slot = schedule.following(self.clock.now())
            t = schedule.time(slot)
            while self.clock.now() < t and not self._stop:
                self.clock.sleep_until(t)
            if self._stop:
                break
            self._tick(loop, slot, t)
            count += 1
            self._idle(loop, schedule.time(slot + 1))
        else:
            asked = None
        slot = schedule.following(self.clock.now())
        why = "asked to stop" if self._stop or asked else "done"
        self._publish(loop.stop(slot, self.clock.now(), why))
        if self.watchdog is not None:
            self.watchdog.rest()
        self._share_gc()
        if asked is None or asked.transition == "shutdown":
            self.finish()
        else:
            self.lifecycle.go("deactivate")
        if asked is not None:
            asked.answer(True)

    def _share_gc(self) -> None:
        if self.quiet_gc:
            gc.enable()
            gc.unfreeze()

    def _tick(self, loop: Loop, slot: int, t: float) -> None:
        began = time.perf_counter()
        self._publish(loop.tick(slot, t))
        took = time.perf_counter() - began
        outcome = loop.last_outcome
        if outcome is not None and outcome.planned is not None and outcome.job.tick == slot:
            took -= outcome.planned.seconds.get("model", 0.0)
        loop.stages.record("framework", max(0.0, took))

    def _publish(self, published: Published) -> None:
        began = time.perf_counter()
        try:
            self.sender.send(Motion(published.times, published.actions), published.stamp_ns)
            self.mute = ""
        except Exception as error:
            self._not_sent(error)
            self.mute = self.error
        assert self.loop is not None
        self.loop.stages.record("publish", time.perf_counter() - began)
        self.last = published

    def _idle(self, loop: Loop, following: float) -> None:
        """What a tick does when its message is out. One that is not is no sign of life: others hear
        the watchdog then."""
        assert self.last is not None
        motion = loop.prepare(following)
        if self.watchdog is not None and motion is not None and not self.mute:
            self.watchdog.beat(self.last.tick, motion)
        for listener in self.listeners:
            try:
                listener.published(self.last)
            except Exception as error:  # who listens in must not end the drive
                self.error = f"{type(error).__name__}: {error}"
        self._report()
        if self.quiet_gc:
            self._collect(following - self.clock.now() > loop.config.period_s / 2)

    def _collect(self, idle: bool) -> None:
        """Young garbage when there is time, and all of it now and then, time or not."""
        now = self.clock.now()
        if now - self._collected >= COLLECT_S:
            self._collected = now
            gc.collect()
        elif idle:
            gc.collect(0)

    def _went(self, transition: str, before: str, after: str) -> None:
        try:
            self.sender.transition(transition, before, after, self.clock.wall_ns())
        except Exception as error:
            self._not_sent(error)

    def _not_sent(self, error: Exception) -> None:
        self.unsent += 1
        if not self.trace:  # why it could not be loaded matters more
            self.error = f"{type(error).__name__}: {error}"

    def _report(self, *, force: bool = False) -> None:
        """Once a second, and when something has changed."""
        self.systemd.alive()
        status = health_of(self)
        when, changed = self._reported
        now = self.clock.now()
        if force or now - when >= REPORT_S or status.key != changed:
            self._reported = (now, status.key)
            try:
                status = dataclasses.replace(status, values=details(self))
                self.sender.report(status, self.clock.wall_ns())
            except Exception as error:
                self._not_sent(error)

    def _shut_down(self) -> None:
        self.systemd.stopping()
        if self.lifecycle.state == "active":
            self.lifecycle.go("deactivate")
        self.lifecycle.go("shutdown")
        self.lifecycle.heard()  # who still asks is refused
        self._report(force=True)
        self._share_gc()
        if self.watchdog is not None:
            self.watchdog.close(takes_over=self.fell)
        if self.loop is not None:
            self.loop.worker.close()
        self.transport.close()
        for listener in self.listeners:
            listener.close()
