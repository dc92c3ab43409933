"""Ctrl-C that lets the work in hand be put down first, and processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "catch_interrupts", "die_with_parent"]

PR_SET_PDEATHSIG = 1


class Interrupts:
    """Whether somebody asked to stop."""

    requested = False


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one interrupts at once.

    Outside of the main thread, where Python handles no signals, nothing is caught.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if interrupts.requested:
            raise KeyboardInterrupt
        interrupts.requested = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(parent: int) -> bool:
    """Have the kernel end this process when its parent ends, even while it hangs.

    Args:
        parent: the process that started this one.

    Returns:
        False where that has ended before.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
