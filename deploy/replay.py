"""A recorded drive in the place of the world, in real or virtual time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

from fastloop.deploy.bags.reading import read_bag
from fastloop.deploy.clock import Clock, VirtualClock, WallClock
from fastloop.deploy.transport.base import Publisher, Sample, Transport

__all__ = ["Replay"]


class Replay:
    """Sends a bag's messages when they came then, counted from the first.

    Args:
        bag: as of `read_bag`.
        topics: those that are sent.
        pace: ``virtual`` or ``real``.

    Attributes:
        clock: in which the recording's stamps are the present.
        error: at real pace, why it ended before the bag did; in virtual time whoever moves the
            clock gets it.

    Raises:
        ValueError: for another pace, or a bag without a message on any of `topics`.
        BagError: the bag cannot be read.
    """

    def __init__(self, bag: str | Path, topics: Sequence[str], pace: str = "virtual") -> None:
        if pace not in ("virtual", "real"):
            raise ValueError(f"unknown pace {pace!r}; have: virtual, real")
        self._samples: Iterator[Sample] = read_bag(bag, topics)
        first = next(self._samples, None)
        if first is None:
            have = ", ".join(sorted({sample.topic for sample in read_bag(bag)})) or "nothing"
            raise ValueError(f"{bag} has no message on {', '.join(topics)}; it holds {have}")
        self._next: Sample | None = first
        self._origin_ns = first.received_ns
        self.clock: Clock = (
            VirtualClock(wall_ns=first.received_ns)
            if pace == "virtual"
            else WallClock(wall_offset_ns=first.received_ns - time.time_ns())
        )
        self._publishers: dict[str, Publisher] = {}
        self._ended = Event()
        self.error: Exception | None = None
        self.sent = 0

    def start(self, transport: Transport, done: Callable[[], None]) -> None:
        """Begin to send on `transport`, and call `done` after the last message."""
        self._begin = self.clock.now()
        if isinstance(self.clock, VirtualClock):
            self._schedule(self.clock, transport, done)
        else:
            Thread(target=self._run, args=(transport, done), name="replay", daemon=True).start()

    def stop(self) -> None:
        """Send no more."""
        self._ended.set()

    def _schedule(
        self, clock: VirtualClock, transport: Transport, done: Callable[[], None]
    ) -> None:
        def step() -> None:
            self._send(transport)
            if self._next is None:
                done()
            else:
                clock.at(self._due(), step)

        clock.at(self._due(), step)

    def _run(self, transport: Transport, done: Callable[[], None]) -> None:
        try:
            while self._next is not None and not self._ended.is_set():
                self.clock.sleep_until(self._due())
                self._send(transport)
        except Exception as error:
            self.error = error
        finally:
            done()

    def _due(self) -> float:
        assert self._next is not None
        return self._begin + (self._next.received_ns - self._origin_ns) / 1e9

    def _send(self, transport: Transport) -> None:
        sample = self._next
        assert sample is not None
        if sample.topic not in self._publishers:
            self._publishers[sample.topic] = transport.publisher(sample.topic, sample.type)
        stamp = sample.received_ns if sample.stamp_ns is None else sample.stamp_ns
        self._publishers[sample.topic].send(sample.data, stamp)
        self.sent += 1
        self._next = next(self._samples, None)
