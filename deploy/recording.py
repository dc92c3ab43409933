"""What the node keeps of a run: the flight recorder, and a file of everything that viewers read."""

from __future__ import annotations

import threading
from pathlib import Path

from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.ladder import STOP
from fastloop.deploy.loop import Published
from fastloop.deploy.messages import Messages
from fastloop.deploy.recorder import Recorder
from fastloop.deploy.transport.base import Sample

__all__ = ["BlackBox", "Film"]


class BlackBox:
    """Writes the last seconds down whenever the machine is brought to rest.

    Args:
        recorder: keeps them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._stopping = False

    def received(self, sample: Sample) -> None:
        """Keep it."""
        self.recorder.add(sample)

    def sent(self, sample: Sample) -> None:
        """Keep it."""
        self.recorder.add(sample)

    def published(self, published: Published) -> None:
        """At the first tick of a stop, ask for a file."""
        stopping = published.rung >= STOP
        if stopping and not self._stopping:
            self.recorder.save(f"rung {published.rung} {published.reason}")
        self._stopping = stopping

    def faults(self) -> list[str]:
        """What could not be written."""
        return self.recorder.faults()

    def close(self) -> None:
        """Finish what was asked for."""
        self.recorder.close()


class Film:
    """Writes everything that comes and goes to one MCAP file, for replays.

    Args:
        path: of the file.
        messages: the types.
    """

    def __init__(self, path: str | Path, messages: Messages) -> None:
        self._writer = BagWriter(path, messages)
        self._lock = threading.Lock()
        self._fault = ""
        self._closed = False

    def received(self, sample: Sample) -> None:
        """Write it."""
        with self._lock:
            if self._fault or self._closed:
                return
            try:
                self._writer.write(sample)
            except (OSError, ValueError) as error:
                self._fault = f"the film ends here: {error}"

    def sent(self, sample: Sample) -> None:
        """Write it."""
        self.received(sample)

    def published(self, published: Published) -> None:
        """It was sent already."""

    def faults(self) -> list[str]:
        """Why it ends early."""
        return [self._fault] if self._fault else []

    def close(self) -> None:
        """Make the file whole."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._writer.close()
                except OSError as error:
                    self._fault = f"the film is lost: {error}"
