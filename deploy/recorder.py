"""The flight recorder: the last seconds of all messages, written down when something went wrong."""

from __future__ import annotations

import queue
import re
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.clock import Clock, WallClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import Sample

__all__ = ["Recorder"]

WAITING = 4  # recordings that may wait for the disk


class Recorder:
    """Keeps samples in memory; a thread of its own writes them to MCAP when asked.

    Nothing here raises into the loop: what goes wrong, a full disk above all, is in `faults`.

    Args:
        folder: where files go; made when the first one is written.
        messages: the types that are written; others are left out, and said so.
        seconds: of messages that are kept.
        max_bytes: of messages that are kept; the oldest go first.
        max_files: written in all; then only `faults` are.
        clock: what the seconds are of.
    """

    def __init__(
        self,
        folder: str | Path,
        messages: Messages,
        *,
        seconds: float = 30.0,
        max_bytes: int = 2**28,
        max_files: int = 100,
        clock: Clock | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.messages = messages
        self.seconds = seconds
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.clock = clock or WallClock()
        self.files: list[Path] = []
        self._ring: deque[tuple[float, Sample]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._faults: dict[str, int] = {}
        self._work: queue.SimpleQueue[tuple[str, list[Sample]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def add(self, sample: Sample) -> None:
        """Keep a sample, and let those go that are too old or too many."""
        now = self.clock.now()
        with self._lock:
            self._ring.append((now, sample))
            self._bytes += len(sample.data)
            while self._ring and (
                self._bytes > self.max_bytes or self._ring[0][0] < now - self.seconds
            ):
                self._bytes -= len(self._ring.popleft()[1].data)

    def save(self, reason: str) -> bool:
        """Write what is kept to a file that is named after the time and `reason`; returns at once.

        Trouble that lasts is one file in `seconds`, not one a tick.

        Returns:
            whether it will be written.
        """
        now = self.clock.now()
        with self._lock:
            if self._asked_at is not None and now < self._asked_at + self.seconds:
                return False
            if self._work.qsize() >= WAITING:  # a disk that hangs must not fill the memory
                return False
            self._asked_at = now
            kept = [sample for _, sample in self._ring]
        self._work.put((reason, kept))
        return True

    def faults(self) -> list[str]:
        """What went wrong, and how often."""
        with self._lock:
            return [f"{text} ({count} times)" for text, count in self._faults.items()]

    def close(self, timeout_s: float = 2.0) -> bool:
        """Finish what was asked for.

        Returns:
            whether that was done within `timeout_s`.
        """
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _write_all(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._write(*work)
            except Exception as error:  # a recorder that fails must not take the vehicle with it
                self._fault(f"the recording of {work[0]!r} was not written: {error!r}")

    def _write(self, reason: str, samples: list[Sample]) -> None:
        if len(self.files) >= self.max_files:
            self._fault(f"there are {self.max_files} recordings already; no more are written")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        time = datetime.fromtimestamp(self.clock.wall_ns() / 1e9, UTC)
        word = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:40]
        path = self.folder / f"{time:%Y%m%dT%H%M%S%f}-{word}.mcap"
        with BagWriter(path, self.messages) as writer:
            for sample in samples:
                try:
                    writer.write(sample)
                except ValueError as error:
                    self._fault(f"left out of a recording: {error}")
        self.files.append(path)

    def _fault(self, text: str) -> None:
        with self._lock:
            self._faults[text] = self._faults.get(text, 0) + 1
