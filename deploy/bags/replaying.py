"""Publishes a bag again, at its own pace or faster, in real or virtual time.

As a process: ``python -m fastloop.deploy.bags.replaying bag.mcap tcp/127.0.0.1:7447 [speed]``.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from fastloop.deploy.bags.from_drive import ROUTE
from fastloop.deploy.bags.reading import read_bag
from fastloop.deploy.clock import Clock, WallClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import LATCHED, QoS, Sample, Transport
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

__all__ = ["replay", "replay_into"]

_PATIENCE_S = 0.1  # after which it is asked again whether to stop


def replay(
    path: str | Path,
    transport: Transport,
    messages: Messages,
    clock: Clock,
    *,
    topics: Iterable[str] | None = None,
    speed: float = 1.0,
    latched: Iterable[str] = (),
    restamp: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Publish the messages of a bag as far apart as they were recorded, and return how many.

    Args:
        topics: those wanted; None for all.
        speed: 2 is twice as fast.
        latched: topics that latecomers get the last message of.
        restamp: stamp messages as if they were of now, as far before their publishing as they were
            before their recording; otherwise they are of then.
        stop: whether to end; asked again and again.

    Raises:
        BagError: the bag cannot be read.
        ValueError: it holds messages of a type that is not known.
        OSError: a message cannot be sent.
    """
    latched = set(latched)
    publishers = {}

    def publish(sample: Sample) -> None:
        key = sample.topic, sample.type
        if key not in publishers:
            qos = LATCHED if sample.topic in latched else QoS(reliable=True, depth=10)
            publishers[key] = transport.publisher(*key, qos)
        stamp = sample.received_ns if sample.stamp_ns is None else sample.stamp_ns
        publishers[key].send(sample.data, stamp)

    wanted = None if topics is None else set(topics)
    return replay_into(
        publish, read_bag(path, wanted), messages, clock, speed=speed, restamp=restamp, stop=stop
    )


def replay_into(
    publish: Callable[[Sample], None],
    samples: Iterable[Sample],
    messages: Messages,
    clock: Clock,
    *,
    speed: float = 1.0,
    restamp: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Call `publish` with samples in the order and at the pace at which they were received; the
    arguments, and what is returned, are as of `replay`."""
    if speed <= 0:
        raise ValueError(f"a bag is replayed at a speed above 0, got {speed}")
    began: tuple[float, int, int] | None = None
    count = 0
    for sample in samples:
        if began is None:
            began = clock.now(), clock.wall_ns(), sample.received_ns
        start, wall_ns, first_ns = began
        since_ns = (sample.received_ns - first_ns) / speed
        due = start + since_ns / 1e9
        while not stop() and clock.now() < due:
            clock.sleep_until(min(due, clock.now() + _PATIENCE_S))
        if stop():
            break
        if restamp:
            sample = _restamped(sample, wall_ns + round(since_ns), messages)
        publish(sample)
        count += 1
    return count


def _restamped(sample: Sample, now_ns: int, messages: Messages) -> Sample:
    stamp = messages.stamp(sample.type, sample.data)
    if stamp is None:
        stamp = sample.received_ns if sample.stamp_ns is None else sample.stamp_ns
    stamp_ns = now_ns - (sample.received_ns - stamp)
    data = sample.data
    if messages.stamp(sample.type, data) is not None:
        data = messages.restamped(sample.type, data, stamp_ns)
    return Sample(sample.topic, sample.type, data, stamp_ns, now_ns)


def main(path: str, endpoint: str, speed: str = "1") -> None:
    """Publish a bag over zenoh to who listens at `endpoint`: a process of its own."""
    messages, clock = Messages(), WallClock()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    transport = ZenohTransport(messages, ZenohConfig(node="/replay", connect=(endpoint,)), clock)
    try:
        while not transport.connected and not stop.wait(0.05):
            pass  # whoever listens may still be loading
        replay(
            path, transport, messages, clock, speed=float(speed), latched=[ROUTE], stop=stop.is_set
        )
    finally:
        transport.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
