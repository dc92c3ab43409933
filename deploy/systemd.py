"""Tells systemd that the node is ready, lives and stops (the protocol of sd_notify)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Systemd"]


class Systemd:
    """Speaks to the service manager that started this process; to nobody where none did.

    Args:
        environment: `NOTIFY_SOCKET`, where it listens, and `WATCHDOG_USEC` and `WATCHDOG_PID`, how
            often it wants to hear from whom.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        where = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        whom = environment.get("WATCHDOG_PID") or str(os.getpid())
        every = environment.get("WATCHDOG_USEC", "") if whom == str(os.getpid()) else ""
        self._every_s = int(every) / 2e6 if every.isdecimal() else 0.0
        self._told = float("-inf")

    def ready(self) -> None:
        """The node is configured."""
        self._send(b"READY=1")

    def alive(self) -> None:
        """The loop goes round; told when half of the time is over, so ask often."""
        if self._every_s and time.monotonic() - self._told >= self._every_s:
            self._told = time.monotonic()
            self._send(b"WATCHDOG=1")

    def stopping(self) -> None:
        """The node ends."""
        self._send(b"STOPPING=1")

    def _send(self, message: bytes) -> None:
        """Never waits, never raises: it is the manager's loss."""
        if self._address:
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
            ):
                out.setblocking(False)
                out.sendto(message, self._address)
