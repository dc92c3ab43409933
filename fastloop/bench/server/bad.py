"""Clients as they should not be: one kind stalls, one sends garbage."""

from __future__ import annotations

import multiprocessing
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from fastloop.bench.server.clients import example
from fastloop.deploy.server.codec import pack, unpack
from fastloop.extras import require

__all__ = ["bad_clients"]

PAUSE_S = 0.02
START_S = 180.0


@contextmanager
def bad_clients(port: int, stalling: int, garbage: int) -> Iterator[None]:
    """They are at it as long as the context lasts, in a process of their own: what they do to the
    server is asked, not what they do to the other clients' process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (port, stalling, garbage, theirs)
    process = context.Process(target=_be_bad, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_S):
            raise RuntimeError(f"the bad clients did not start within {START_S:g} s")
        yield
    finally:
        ours.close()
        process.join(10.0)
        if process.is_alive():
            process.kill()


def _be_bad(port: int, stalling: int, garbage: int, connection: Connection) -> None:
    """Until the other end of `connection` is closed."""
    stop, threads = threading.Event(), []

    def work(act: Callable[[int, threading.Event, random.Random], None], seed: int) -> None:
        draw = random.Random(seed)
        while not stop.is_set():
            with suppress(OSError, TimeoutError, *_closed()):
                act(port, stop, draw)
            stop.wait(PAUSE_S)

    for seed in range(stalling + garbage):
        act = _stall if seed < stalling else _send_garbage
        threads.append(threading.Thread(target=work, args=(act, seed), daemon=True))
        threads[-1].start()
    connection.send("started")
    connection.poll(None)
    stop.set()
    for thread in threads:
        thread.join(5.0)


def _closed() -> tuple[type[Exception], ...]:
    return (require("websockets.exceptions", extra="serve").WebSocketException,)


def _connect(port: int, **options: Any) -> Any:
    sync = require("websockets.sync.client", extra="serve")
    return sync.connect(
        f"ws://127.0.0.1:{port}", compression=None, proxy=None, open_timeout=5, close_timeout=0.2,
        **options,
    )  # fmt: skip


def _stall(port: int, stop: threading.Event, draw: random.Random) -> None:
    """Ask again and again, and never take an answer, until cut off."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", port))
    raw.settimeout(1.0)
    with _connect(port, sock=raw, max_queue=1, ping_interval=None) as connection:
        data = pack(example(unpack(connection.recv(timeout=5))))
        while not stop.is_set():
            connection.send(data)
            stop.wait(PAUSE_S / 4)


def _send_garbage(port: int, stop: threading.Event, draw: random.Random) -> None:
    """One of many ways to be wrong."""
    way = draw.randrange(6)
    if way == 0:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            raw.sendall(draw.randbytes(2000))
        return
    if way == 1:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")  # and nothing more
            stop.wait(PAUSE_S)
        return
    with _connect(port) as connection:
        good = pack(example(unpack(connection.recv(timeout=5))))
        data = (
            draw.randbytes(5000),
            good[: draw.randrange(len(good))],
            bytes(2 * 2**20),  # too long
            pack([[0] * 4000] * 16),
        )[way - 2]
        connection.send(data)
        connection.recv(timeout=5)
