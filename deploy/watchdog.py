"""A process of its own that brings the machine to rest when the node falls silent.

The node sends it a beat every tick, with the last rung as it would go out in the next one. When
none comes for `silent_periods`, or the node is gone without a word, it publishes that motion itself
every period, with an ERROR on ``/diagnostics``, until the node is back.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastloop.deploy.motion import Motion

__all__ = ["Sender", "Watchdog", "guard", "main"]

BEAT, REST, BYE = b"\x01", b"\x02", b"\x03"
HEAD = struct.Struct("<qII")


class Sender(Protocol):
    """Publishes for the watchdog."""

    def send(self, motion: Motion, stamp_ns: int) -> None:
        """The plan: `motion`, whose first moment is `stamp_ns`."""
        ...

    def alarm(self, words: str, stamp_ns: int) -> None:
        """An ERROR on ``/diagnostics``."""
        ...


class Watchdog:
    """The node's side of the watchdog's process.

    Args:
        period_s: of the loop.
        settings: what `Sender` is made of, as plain values; see `guard`.
        silent_periods: until it takes over.
        hold_s: how long it goes on after a node that is gone for good.
    """

    def __init__(
        self,
        period_s: float,
        settings: Mapping[str, Any],
        *,
        silent_periods: int = 3,
        hold_s: float = 30.0,
    ) -> None:
        self.told = {
            "period_s": period_s,
            "silent_periods": silent_periods,
            "hold_s": hold_s,
            "sender": dict(settings),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.dropped = 0

    def start(self, *, timeout_s: float = 20.0) -> None:
        """Start the process and wait until it can publish.

        Raises:
            OSError: it does not start within `timeout_s`.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "fastloop.deploy.watchdog", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), start_new_session=True, stdin=subprocess.DEVNULL
        )
        theirs.close()
        ours.settimeout(timeout_s)
        try:
            ours.send(json.dumps(self.told).encode())
            ready = ours.recv(16)
        except OSError as error:
            ours.close()
            self.process.kill()  # one that nobody talks to must not count as alive
            self.process.wait()
            raise OSError(f"the watchdog is not there after {timeout_s:g} s: {error}") from error
        if ready != b"ready":
            ours.close()
            raise OSError(f"the watchdog ended with exit code {self.process.wait()}")
        ours.setblocking(False)
        self._socket = ours

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def beat(self, tick: int, motion: Motion) -> None:
        """The node lives; `motion` is the last rung of the next tick. Never waits, never raises."""
        head = HEAD.pack(tick, *motion.points.shape)
        times, points = motion.times.astype("<f8"), motion.points.astype("<f8")
        self._send(BEAT + head + times.tobytes() + points.tobytes())

    def rest(self) -> None:
        """The node does not publish for now and means it."""
        self._send(REST)

    def close(self, *, takes_over: bool = False) -> None:
        """The node ends and means it; so does the process.

        Args:
            takes_over: the node ends otherwise than it meant to: the process brings the machine to
                rest first, and lives on for that.
        """
        if not takes_over:
            self._send(BYE)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.process is not None and not takes_over:
            try:
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _send(self, packet: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(packet)
        except OSError:  # it is stuck, or gone: `alive` says so
            self.dropped += 1


def guard(connection: socket.socket, sender: Sender, told: Mapping[str, Any]) -> int:
    """Watch over a node until it says goodbye or has been gone for ``hold_s``.

    Args:
        connection: to the node.
        sender: publishes.
        told: ``period_s``, ``silent_periods`` and ``hold_s``.

    Returns:
        0 after a goodbye, 3 after a node that is gone.
    """
    period: float = told["period_s"]
    patience = told["silent_periods"] * period
    motion: Motion | None = None
    heard = time.monotonic()
    gone: float | None = None  # since when
    alarmed = -1e9
    while True:
        now = time.monotonic()
        silent = motion is not None and (gone is not None or now - heard >= patience)
        wait = period if silent or motion is None else max(0.0, heard + patience - now)
        if silent and motion is not None:
            since = now - heard
            words = f"the node is {'gone' if gone else 'silent'}, last heard {since:.2f} s ago"
            with contextlib.suppress(Exception):  # a transport that fails may come back
                sender.send(motion.since(now, step_s=period), time.time_ns())
                if now - alarmed >= 1.0:
                    alarmed = now
                    sender.alarm(words, time.time_ns())
        if gone is not None:
            if motion is None or now - gone > told["hold_s"]:
                return 3
            time.sleep(period)
            continue
        if not select.select([connection], [], [], wait)[0]:
            continue
        packet = b""
        with contextlib.suppress(ConnectionError):
            packet = connection.recv(1 << 20)
        if packet[:1] == BYE:
            return 0
        if not packet:
            gone = time.monotonic()
        elif packet[:1] == REST:
            motion = None
        else:
            motion, heard = _unpack(packet), time.monotonic()


def _unpack(packet: bytes) -> Motion:
    _, rows, columns = HEAD.unpack_from(packet, 1)
    values = np.frombuffer(packet, "<f8", offset=1 + HEAD.size)
    return Motion(values[:rows].copy(), values[rows:].reshape(rows, columns).copy())


def main() -> int:
    """The process: ``python -m fastloop.deploy.watchdog FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node is told, and tells
    connection = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(connection.recv(1 << 20))
    from fastloop.deploy.outputs import WireSender

    sender = WireSender(**told["sender"])
    connection.send(b"ready")
    try:
        return guard(connection, sender, told)
    finally:
        sender.close()


if __name__ == "__main__":
    sys.exit(main())
