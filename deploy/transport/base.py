"""What the loop needs of a transport: samples in, messages out, and the quality that is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "LATCHED",
    "SENSOR",
    "SERVICE",
    "Answer",
    "Callback",
    "Publisher",
    "QoS",
    "Sample",
    "Transport",
    "plan_qos",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """One message as it came.

    Attributes:
        topic: for instance ``/camera/front/image``.
        type: ROS 2 name, for instance ``sensor_msgs/msg/Image``.
        data: the CDR bytes, header of 4 bytes included.
        stamp_ns: nanoseconds since 1970 in its header; where it has none, when it was sent; None
            where the sender said neither.
        received_ns: nanoseconds since 1970 at arrival, by the receiver's clock.
    """

    topic: str
    type: str
    data: bytes
    stamp_ns: int | None
    received_ns: int


Callback = Callable[[Sample], None]
Answer = Callable[[Any], Any]
"""A service's request message to its response message."""


@dataclass(frozen=True)
class QoS:
    """Quality of service as ROS 2 says it; the history always keeps the last `depth`.

    Attributes:
        reliable: whether lost messages are sent again; best effort otherwise.
        transient_local: whether who comes late still gets the last `depth` messages.
        depth: messages kept.
        deadline_s: longest time between two messages; 0 for none. Advertised only.
        lifespan_s: age at which a message is void; 0 for never. Advertised only.
    """

    reliable: bool = False
    transient_local: bool = False
    depth: int = 1
    deadline_s: float = 0.0
    lifespan_s: float = 0.0


SENSOR = QoS()
LATCHED = QoS(reliable=True, transient_local=True)
SERVICE = QoS(reliable=True, depth=10)


def plan_qos(period_s: float, horizon_s: float) -> QoS:
    """Of plans: reliable, one due every two periods, void at its end."""
    return QoS(reliable=True, deadline_s=2 * period_s, lifespan_s=horizon_s)


class Publisher(Protocol):
    """Sends messages on one topic."""

    def publish(self, message: Any, stamp_ns: int) -> None:
        """Send a message object of the topic's type, stamped with nanoseconds since 1970.

        Raises:
            OSError: when it cannot be sent now.
        """
        ...

    def send(self, data: bytes, stamp_ns: int) -> None:
        """Send a message that is encoded already; as `publish` otherwise."""
        ...


class Transport(Protocol):
    """Topics in and out."""

    def subscribe(self, topic: str, type: str, callback: Callback, qos: QoS = SENSOR) -> None:
        """Call `callback` with every sample of `topic`, in a thread of the transport's own."""
        ...

    def publisher(self, topic: str, type: str, qos: QoS = SENSOR) -> Publisher:
        """What sends on `topic`."""
        ...

    def serve(self, service: str, type: str, answer: Answer) -> None:
        """Answer the requests of `service`, in a thread of the transport's own; one to which
        `answer` raises gets no response."""
        ...

    def faults(self) -> list[str]:
        """Why messages may be missing, in words; empty where nothing is known to be wrong."""
        ...

    def close(self) -> None:
        """Leave; nothing is called back afterwards."""
        ...
