"""Clients that ask at a fixed rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastloop.deploy.server.codec import pack, unpack
from fastloop.deploy.server.protocol import OURS
from fastloop.extras import require

__all__ = ["Asked", "ask_all", "example"]

WARM_S = 1.0
PATIENCE_S = 10.0


@dataclass
class Asked:
    """What became of all ticks of all clients.

    Attributes:
        ticks: that were due.
        answered: with a plan, before the next tick.
        late: answered, but after the next tick had begun.
        errors: what went wrong, in words.
        latencies_ms: from asking to the answer.
        batches: clients that each answer was planned with.
    """

    ticks: int = 0
    answered: int = 0
    late: int = 0
    errors: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    @property
    def drops(self) -> int:
        """Ticks without an answer in time."""
        return self.ticks - self.answered


def example(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An observation as the server's first frame asks for."""
    return {
        key: np.zeros(value["shape"], value["dtype"])
        for key, value in metadata[OURS]["inputs"].items()
    }


def ask_all(port: int, clients: int, hz: float, seconds: float) -> Asked:
    """Let all clients ask, evenly spread over the period; the first second is not counted."""
    return asyncio.run(_ask_all(port, clients, hz, seconds))


async def _ask_all(port: int, clients: int, hz: float, seconds: float) -> Asked:
    asked, start = Asked(), time.monotonic() + 1.0  # until then all have connected
    async with asyncio.TaskGroup() as group:
        for n in range(clients):
            begin = start + n / (clients * hz)
            group.create_task(_ask(port, begin, hz, seconds, asked))
    return asked


async def _ask(port: int, begin: float, hz: float, seconds: float, asked: Asked) -> None:
    connect = require("websockets.asyncio.client", extra="serve").connect
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
        data = pack(example(unpack(await connection.recv())))
        tick = 0
        while tick < seconds * hz:
            due = begin + tick / hz
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            counts = tick >= WARM_S * hz
            sent = time.monotonic()
            await connection.send(data)
            try:
                told = await asyncio.wait_for(connection.recv(), PATIENCE_S)
            except TimeoutError:
                asked.ticks += 1
                asked.errors.append(f"no answer within {PATIENCE_S:g} s")
                return
            came = time.monotonic()
            # The ticks that passed while the answer was on its way were never asked for.
            passed = max(1, int((came - due) * hz) + 1)
            if counts:
                asked.ticks += passed
                if isinstance(told, str):
                    asked.errors.append(told.strip().splitlines()[-1])
                else:
                    asked.answered += passed == 1
                    asked.late += passed > 1
                    asked.latencies_ms.append(1e3 * (came - sent))
                    asked.batches.append(unpack(told)[OURS]["batch"])
            tick += passed
