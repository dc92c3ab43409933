"""The newest message of every topic, and whether together they are good enough to plan on."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastloop.deploy.clock import Clock
from fastloop.deploy.motion import State
from fastloop.deploy.transport.base import Sample

__all__ = ["Held", "Inputs", "Make", "Snapshot", "Topic"]

CLOSE_S = 0.01  # between two states that are kept: so they reach far back at any rate

Make = Callable[[Any], Any]
"""Of a decoded message, what a policy reads; equal ones make the same."""

Decode = Callable[[Sample, float], Any]
"""(sample, monotonic s at which it held) -> what it says; ValueError where that is nothing."""


@dataclass(frozen=True)
class Topic:
    """One topic and how far it is trusted.

    Attributes:
        name: for instance ``/camera/front/image``.
        type: ROS 2 name of its messages.
        decode: makes a value of a message.
        max_age_s: older than this it is no observation, by stamp as by arrival; None for what is
            said once and holds (a route, a calibration).
        eager: decode on arrival, which must be quick; a message that says nothing is then dropped
            and the one before it stands. Otherwise it is decoded when a plan needs it.
        ahead: what is made of every message as soon as it is taken, in the thread that brings it,
            so that a plan finds it made; what it raises is for the plan to meet.
    """

    name: str
    type: str
    decode: Decode
    max_age_s: float | None = 0.5
    eager: bool = False
    ahead: Sequence[Make] = ()


@dataclass
class Held:
    """A message that was taken.

    Attributes:
        sample: as it came.
        time: monotonic s of its stamp.
        arrived: monotonic s of its arrival.
    """

    sample: Sample
    time: float
    arrived: float
    _decode: Decode
    _value: Any = None
    _made: dict[Make, Any] = field(default_factory=dict)
    _making: threading.Lock = field(default_factory=threading.Lock)

    @property
    def value(self) -> Any:
        """What it says, decoded once.

        Raises:
            ValueError: it says nothing.
        """
        if self._value is None:
            self._value = self._decode(self.sample, self.time)
        return self._value

    def made(self, make: Make) -> Any:
        """What `make` makes of its value, made once; nobody may write to it.

        Raises:
            ValueError: as `value`; and what `make` raises.
        """
        with self._making:  # who comes while it is being made waits, rather than make it again
            if make not in self._made:
                self._made[make] = make(self.value)
            return self._made[make]


@dataclass(frozen=True)
class Snapshot:
    """What was known at one moment.

    Attributes:
        held: the newest message of every topic.
        states: measured states, oldest first; the last is the newest.
    """

    held: Mapping[str, Held]
    states: tuple[State, ...]

    @property
    def oldest(self) -> float:
        """Monotonic s of the oldest message that may grow old."""
        return min(held.time for held in self.held.values())


@dataclass
class Inputs:
    """Takes messages from any thread; tells the loop what is there, or why nothing can be planned.

    Age has two parts: how long a message traveled (wall clock at arrival minus its stamp, both read
    at that moment) and how long it lies here (monotonic). A wall clock that jumps therefore spoils
    the messages that are under way, and nothing that has arrived.

    Args:
        topics: all must be there and young for a snapshot.
        clock: of the loop.
        state: name of the topic whose values are `State`s; it must be eager.
        max_skew_s: largest difference of stamps in a snapshot.
        future_s: how far a stamp may lie in the future, as clocks differ.
        states: measured states kept; of those that come closer than `CLOSE_S`, fewer.
    """

    topics: Sequence[Topic]
    clock: Clock
    state: str
    max_skew_s: float = 0.2
    future_s: float = 0.05
    states: int = 1024
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._topics = {topic.name: topic for topic in self.topics}
        if self.state not in self._topics or not self._topics[self.state].eager:
            raise ValueError(
                f"the state comes from an eager topic; {self.state!r} is none of "
                f"{[topic.name for topic in self.topics if topic.eager]}"
            )
        self._held: dict[str, Held] = {}
        self._states: deque[State] = deque(maxlen=self.states)
        self._lock = threading.Lock()
        self.faults: dict[str, str] = {}  # topic to what is wrong with its last message

    def offer(self, sample: Sample) -> str:
        """Take a message or drop it; returns why it was dropped, in a word that is also counted
        under ``(topic, word)``, or nothing."""
        verdict = self._judge(sample)
        with self._lock:
            self.counts[sample.topic, verdict or "taken"] += 1
        return verdict

    def _judge(self, sample: Sample) -> str:
        topic = self._topics.get(sample.topic)
        if topic is None:
            return "unknown"
        if sample.type != topic.type:
            return "wrong type"
        now = self.clock.now()
        traveled = (sample.received_ns - sample.stamp_ns) / 1e9 if sample.stamp_ns else 0.0
        if traveled < -self.future_s:
            return "future"
        held = Held(sample, now - max(0.0, traveled), now, topic.decode)
        with self._lock:
            if verdict := self._out_of_turn(held, self._held.get(sample.topic), topic):
                return verdict
            if topic.eager:
                try:
                    value = held.value
                except Exception as error:
                    self.faults[sample.topic] = str(error)
                    return "bad"
                self.faults.pop(sample.topic, None)
                if sample.topic == self.state:
                    self._remember(value, topic.max_age_s)
            self._held[sample.topic] = held
        for make in topic.ahead:
            with suppress(Exception):
                held.made(make)
        return ""

    def _out_of_turn(self, held: Held, last: Held | None, topic: Topic) -> str:
        new, old = held.sample.stamp_ns, last.sample.stamp_ns if last else None
        if last is None or not new or not old or new > old:
            return ""
        # A sender whose clock was set back would never be heard again.
        if held.arrived - last.arrived > (topic.max_age_s or 1.0):
            return ""
        return "duplicate" if new == old else "out of order"

    def _remember(self, state: State, max_age_s: float | None) -> None:
        states = self._states
        if states and state.time <= states[-1].time:
            if max_age_s is not None and self.clock.now() - state.time > max_age_s:
                return  # the wall clock was set while it was under way: it was not then
            states.clear()
        if len(states) > 1 and state.time - states[-2].time < CLOSE_S:
            states.pop()
        states.append(state)

    def missing(self, topic: str) -> str:
        """That nothing has come yet, or nothing that can be taken."""
        fault = self.faults.get(topic, "")
        return f"no message on {topic} yet" + (f" that can be taken: {fault}" if fault else "")

    def newest_state(self) -> State | None:
        """The last state that was measured, however old."""
        with self._lock:
            return self._states[-1] if self._states else None

    def look(self) -> Snapshot | str:
        """What is known now, or why that is not enough."""
        with self._lock:
            held, states = dict(self._held), tuple(self._states)
        now = self.clock.now()
        times = []
        for topic in self.topics:
            if topic.name not in held:
                return self.missing(topic.name)
            if topic.max_age_s is not None:
                times.append(held[topic.name].time)
                if (age := now - times[-1]) > topic.max_age_s:
                    return f"{topic.name} is {age:.2f} s old, at most {topic.max_age_s:g}"
        if times and (skew := max(times) - min(times)) > self.max_skew_s:
            return f"topics are {skew:.2f} s apart, at most {self.max_skew_s:g}"
        return Snapshot(held, states)

    def ages(self) -> dict[str, float]:
        """Seconds since the stamp of every topic's newest message; infinite before the first."""
        with self._lock:
            held = dict(self._held)
        now = self.clock.now()
        return {
            topic.name: now - held[topic.name].time if topic.name in held else float("inf")
            for topic in self.topics
        }
