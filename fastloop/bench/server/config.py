"""The configuration of `fastloop bench server`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastloop.config import PolicyConfig

__all__ = ["DEBUG", "ServerBenchConfig"]

DEBUG = "debug"


@dataclass
class ServerBenchConfig:
    """A policy server in a process of its own, and clients that ask at a fixed rate.

    Measured twice: the clients by themselves, and beside some that stall and some that send
    garbage. A tick whose answer has not come when the next one begins is a drop.

    Attributes:
        policy: what is served; `debug` takes `plan_ms` for a plan, whatever its rows, and reads one
            state of 16 numbers.
        plan_ms: of the debug policy.
        clients: that ask.
        hz: how often each of them does.
        seconds: of each measurement; the first one of each is not counted.
        stalling: clients that ask as fast as they can and never take an answer.
        garbage: clients that send what is no request, again and again.
        max_wait_ms: see `ServeConfig`.
    """

    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(checkpoint=DEBUG))
    plan_ms: float = 5.0
    clients: int = 32
    hz: float = 10.0
    seconds: float = 20.0
    stalling: int = 1
    garbage: int = 1
    max_wait_ms: float = 2.0
    run_dir: str | None = None
