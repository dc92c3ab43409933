"""A transport within one process, in memory: for replay, and for tests that lose messages."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from fastloop.deploy.clock import Clock, VirtualClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import SENSOR, Answer, Callback, QoS, Sample

__all__ = ["Bus", "Fault", "LoopbackPublisher", "LoopbackTransport"]

Fault = Callable[[Sample], Iterable[tuple[float, Sample]]]
"""What becomes of a sample: none, or several, each with the seconds by which it is late."""


class Bus:
    """What transports of one process meet on.

    Args:
        clock: stamps what arrives; a `VirtualClock` also delivers what is late.
        fault: what becomes of each sample; all arrive at once by default.

    Attributes:
        down: while true nothing passes, and sending raises OSError.
    """

    def __init__(self, clock: Clock, fault: Fault | None = None) -> None:
        self.clock = clock
        self.fault = fault
        self.down = False
        self.subscribers: dict[tuple[str, str], list[Callback]] = defaultdict(list)
        self.kept: dict[tuple[str, str], deque[Sample]] = {}
        self.services: dict[tuple[str, str], Answer] = {}

    def send(self, key: tuple[str, str], sample: Sample) -> None:
        """Deliver to who subscribes to `key` (topic and type hash).

        Raises:
            OSError: while it is down.
        """
        if self.down:
            raise OSError(f"{sample.topic} cannot be sent: the transport is down")
        if key in self.kept:
            self.kept[key].append(sample)
        for late_s, copy in self.fault(sample) if self.fault else [(0.0, sample)]:
            if late_s > 0:
                assert isinstance(self.clock, VirtualClock), "only virtual time delivers late"
                self.clock.at(self.clock.now() + late_s, partial(self._deliver, key, copy))
            else:
                self._deliver(key, copy)

    def _deliver(self, key: tuple[str, str], sample: Sample) -> None:
        if self.down:
            return
        arrived = Sample(
            sample.topic, sample.type, sample.data, sample.stamp_ns, self.clock.wall_ns()
        )
        for callback in list(self.subscribers[key]):
            callback(arrived)


class LoopbackTransport:
    """A node on a `Bus`. Callbacks run in the thread of who sends.

    Args:
        messages: the types and their codec; nodes whose types have other hashes do not meet.
        bus: whom it meets.
    """

    def __init__(self, messages: Messages, bus: Bus) -> None:
        self.messages = messages
        self.bus = bus
        self._callbacks: list[tuple[tuple[str, str], Callback]] = []
        self._services: list[tuple[str, str]] = []
        self.closed = False

    def subscribe(self, topic: str, type: str, callback: Callback, qos: QoS = SENSOR) -> None:
        """Call `callback` with every sample of `topic`; at once with those kept for latecomers."""
        key = (topic, self.messages.hash(type))
        self._callbacks.append((key, callback))
        self.bus.subscribers[key].append(callback)
        if qos.transient_local:
            for sample in list(self.bus.kept.get(key, ()))[-qos.depth :]:
                callback(sample)

    def publisher(self, topic: str, type: str, qos: QoS = SENSOR) -> LoopbackPublisher:
        """What sends on `topic`."""
        key = (topic, self.messages.hash(type))
        self.messages.prepare(type)
        if qos.transient_local:
            self.bus.kept.setdefault(key, deque(maxlen=qos.depth))
        return LoopbackPublisher(self, key, topic, type)

    def serve(self, service: str, type: str, answer: Answer) -> None:
        """Answer the requests of `service`, in the thread of who calls."""
        key = (service, self.messages.hash(type))
        self.bus.services[key] = answer
        self._services.append(key)

    def call(self, service: str, type: str, request: Any) -> Any:
        """The response to a request message.

        Raises:
            OSError: nobody serves that, in that version.
        """
        answer = self.bus.services.get((service, self.messages.hash(type)))
        if answer is None or self.bus.down:
            raise OSError(f"{service} is not answered")
        sent = self.messages.decode(request.__msgtype__, self.messages.encode(request))
        response = answer(sent)
        return self.messages.decode(type + "_Response", self.messages.encode(response))

    def faults(self) -> list[str]:
        """Why messages may be missing."""
        return ["the transport is down"] if self.bus.down else []

    def close(self) -> None:
        """Leave; nothing is called back afterwards."""
        for key, callback in self._callbacks:
            self.bus.subscribers[key].remove(callback)
        for key in self._services:
            self.bus.services.pop(key, None)
        self._callbacks.clear()
        self.closed = True


class LoopbackPublisher:
    """Sends messages on one topic; made by `LoopbackTransport.publisher`."""

    def __init__(
        self, transport: LoopbackTransport, key: tuple[str, str], topic: str, type: str
    ) -> None:
        self._transport = transport
        self._key = key
        self._topic = topic
        self._type = type

    def publish(self, message: Any, stamp_ns: int) -> None:
        """Send a message object of the topic's type, stamped with nanoseconds since 1970.

        Raises:
            BadMessage: where it is none of that type.
            OSError: while the transport is down or closed.
        """
        self.send(self._transport.messages.encode(message), stamp_ns)

    def send(self, data: bytes, stamp_ns: int) -> None:
        """Send a message that is encoded already.

        Raises:
            OSError: while the transport is down or closed.
        """
        if self._transport.closed:
            raise OSError(f"{self._topic} cannot be sent: the transport is closed")
        now = self._transport.bus.clock.wall_ns()
        stamp = self._transport.messages.stamp(self._type, data)
        self._transport.bus.send(
            self._key,
            Sample(self._topic, self._type, data, stamp_ns if stamp is None else stamp, now),
        )
