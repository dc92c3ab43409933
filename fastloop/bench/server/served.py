"""The server of the bench, in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from fastloop.bench.server.config import DEBUG, ServerBenchConfig
from fastloop.config import ServeConfig
from fastloop.deploy.server.server import PolicyServer, ServerConfig, running
from fastloop.policies.base import Budget, Plan
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec
from fastloop.verbs.serve import make_server

__all__ = ["STATE", "DebugPolicy", "serving"]

STATE = "observation.state"
START_S = 180.0


@dataclass
class DebugPolicy:
    """Says the newest state back after `plan_ms`, as a GPU would that works meanwhile.

    Attributes:
        plan_ms: of a plan, whatever its rows.
    """

    plan_ms: float = 0.0
    spec = PolicySpec(
        {STATE: TensorSpec((16,))}, ActionSpec(16, "debug", (-1e9,) * 16, (1e9,) * 16),
        n_obs_steps=1, horizon=16, n_action_steps=8, control_hz=10.0,
    )  # fmt: skip

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """The newest state, T times."""
        time.sleep(self.plan_ms / 1e3)
        newest = history[STATE][:, -1:]
        return Plan(newest.repeat(1, self.spec.horizon, 1), 0.1, history.ticks)


@contextmanager
def serving(config: ServerBenchConfig) -> Iterator[int]:
    """The port of a server that runs as long as the context.

    Raises:
        RuntimeError: it does not start; what it says is in the message.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(config, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        try:
            if not ours.poll(START_S):
                raise RuntimeError(f"the server did not start within {START_S:g} s")
            told = ours.recv()
        except EOFError:
            raise RuntimeError("the server ended before it was ready") from None
        if not isinstance(told, int):
            raise RuntimeError(f"the server does not start: {told}")
        yield told
    finally:
        ours.close()
        process.join(10.0)
        if process.is_alive():
            process.kill()


def _serve(config: ServerBenchConfig, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        with running(_server(config)) as port:
            connection.send(port)
            connection.poll(None)  # until the other end is closed
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _server(config: ServerBenchConfig) -> PolicyServer:
    most = config.clients + config.stalling + config.garbage + 8
    if config.policy.checkpoint == DEBUG:
        settings = ServerConfig(
            port=0, max_clients=most, max_wait_ms=config.max_wait_ms, max_message_mb=1.0
        )
        return PolicyServer(DebugPolicy(config.plan_ms), settings, name=DEBUG)
    return make_server(
        ServeConfig(
            policy=config.policy, port=0, max_clients=most, max_wait_ms=config.max_wait_ms,
            max_message_mb=1.0,
        )
    )  # fmt: skip
