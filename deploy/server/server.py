"""The policy server: websockets, in openpi's protocol."""

from __future__ import annotations

import asyncio
import hmac
import http
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastloop.deploy.server.batching import Batcher, DeadlineError, Job, PolicyError
from fastloop.deploy.server.codec import CodecError, pack, unpack
from fastloop.deploy.server.metrics import Metrics
from fastloop.deploy.server.protocol import RequestError, describe, read_request
from fastloop.deploy.server.rate import Rate, RateError
from fastloop.deploy.server.sessions import Row
from fastloop.extras import require
from fastloop.policies.base import Policy

__all__ = ["LOOPBACK", "PolicyServer", "ServerConfig", "running"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SILENT = logging.getLogger("fastloop.server.websockets")
SILENT.setLevel(logging.CRITICAL)  # what strangers send is counted, not printed
GARBAGE, FAILED, FULL = 1007, 1011, 1013  # reasons to close, RFC 6455


@dataclass(frozen=True)
class ServerConfig:
    """How to serve.

    Attributes:
        host: of the interface; by default only programs on this computer can connect.
        port: 0 takes a free one.
        max_clients: connections beyond are refused.
        max_hz: requests a second of one connection, beyond which it gets errors; 0 for any number.
        max_batch, max_wait_ms, plan_batch: see `Batcher`.
        deadline_ms: of a request that names none; 0 waits as long as it takes.
        max_message_mb: longest request.
        send_timeout_s: after which a client that does not take its answer is cut off.
        stall_s: a policy's call that takes longer makes ``/healthz`` say so.
        seed: root of the policy's noise.
        names: the policy's observation keys to what clients call them.
        api_key: what clients send as ``Authorization: Api-Key ...``; empty asks for none.

    Raises:
        ValueError: for numbers out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_clients: int = 64
    max_hz: float = 0.0
    max_batch: int = 32
    max_wait_ms: float = 2.0
    plan_batch: int = 0
    deadline_ms: float = 0.0
    max_message_mb: float = 16.0
    send_timeout_s: float = 5.0
    stall_s: float = 10.0
    seed: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in ("max_clients", "max_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_message_mb", "send_timeout_s", "stall_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_hz", "max_wait_ms", "deadline_ms", "plan_batch", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be 0 (any) to 65535, got {self.port}")


class PolicyServer:
    """Answers any number of clients; see `protocol` for what they may say.

    An error of one request is answered by a text frame, as openpi does. The connection stays open
    unless what came was no message at all, or the policy itself failed.

    Args:
        policy: what decides.
        config: how to serve.
        name: of the policy, for clients.
        metadata: what else the first frame tells them.
    """

    def __init__(
        self,
        policy: Policy,
        config: ServerConfig | None = None,
        *,
        name: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config or ServerConfig()
        if unknown := sorted(set(self.config.names) - set(policy.spec.inputs)):
            have = ", ".join(policy.spec.inputs)
            raise ValueError(f"names: the policy does not read {unknown}; it reads {have}")
        self.spec = policy.spec
        self.metrics = Metrics()
        self.greeting = pack({**(metadata or {}), **describe(self.spec, name, self.config.names)})
        self.batcher = Batcher(
            policy,
            max_batch=self.config.max_batch,
            max_wait_s=self.config.max_wait_ms / 1e3,
            plan_batch=self.config.plan_batch,
            clients=lambda: self.metrics.clients,
        )
        self._episodes = itertools.count()

    async def serve(self, stop: asyncio.Event, opened: Callable[[int], None] | None = None) -> None:
        """Warm up, then open the port, then answer until `stop` is set.

        Args:
            opened: told the port.

        Raises:
            OSError: the port cannot be had.
            Exception: what the policy raised while warming up.
        """
        asyncio_server = require("websockets.asyncio.server", extra="serve")
        self.batcher.start()
        try:
            await asyncio.wrap_future(self.batcher.ready)
            async with asyncio_server.serve(
                self._client,
                self.config.host,
                self.config.port,
                compression=None,
                max_size=int(self.config.max_message_mb * 2**20),
                max_queue=2,
                origins=[None],  # no page that a browser shows may talk to the robot
                process_request=self._process,
                logger=SILENT,
            ) as server:
                if opened is not None:
                    opened(server.sockets[0].getsockname()[1])
                await stop.wait()
        finally:
            self.batcher.close()

    def _process(self, connection: Any, request: Any) -> Any:
        """Answer plain HTTP, and refuse whom there is no place for."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if self.batcher.busy_s > self.config.stall_s:
                told = f"the policy has been planning for {self.batcher.busy_s:.1f} s\n"
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, told)
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        key = f"Api-Key {self.config.api_key}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if self.config.api_key and not hmac.compare_digest(given, key):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "wrong or no Api-Key\n")
        if path == "/metrics":
            told = self.metrics.text(self.batcher.busy_s)
            return connection.respond(http.HTTPStatus.OK, told)
        if self.metrics.clients >= self.config.max_clients:
            self.metrics.errors["full"] += 1
            told = f"{self.metrics.clients} clients are connected, and no more are served\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, told)
        return None

    async def _client(self, connection: Any) -> None:
        exceptions = require("websockets.exceptions", extra="serve")
        if self.metrics.clients >= self.config.max_clients:  # they came at the same moment
            self.metrics.errors["full"] += 1
            await connection.close(FULL, "too many clients")
            return
        self.metrics.clients += 1
        try:
            await self._send(connection, self.greeting)
            await self._answer_all(connection)
        except TimeoutError:
            self.metrics.errors["slow"] += 1
            connection.transport.abort()
        except exceptions.ConnectionClosed as closed:
            # Whoever goes away without a word broke off; else we or they have said why.
            if closed.rcvd is None and closed.sent is None:
                self.metrics.errors["broken_off"] += 1
        finally:
            self.metrics.clients -= 1

    async def _answer_all(self, connection: Any) -> None:
        row = Row(self.spec, self.config.seed, self._episodes)
        rate = Rate(self.config.max_hz)
        previous_ms: float | None = None
        async for data in connection:
            came = time.monotonic()
            try:
                rate.take(came)
                found = await self._answer(row, data, came)
            except (CodecError, PolicyError) as error:
                garbage = isinstance(error, CodecError)
                self.metrics.errors["garbage" if garbage else "policy"] += 1
                await self._send(connection, str(error))
                await connection.close(GARBAGE if garbage else FAILED, "see the frame before")
                return
            except (RequestError, DeadlineError, RateError) as error:
                kinds: dict[type, str] = {DeadlineError: "deadline", RateError: "rate"}
                self.metrics.errors[kinds.get(type(error), "request")] += 1
                await self._send(connection, str(error))
                continue
            if previous_ms is not None and "server_timing" in found:
                found["server_timing"]["prev_total_ms"] = previous_ms
            await self._send(connection, pack(found))
            self.metrics.answered(time.monotonic() - came)
            previous_ms = 1e3 * (time.monotonic() - came)

    async def _answer(self, row: Row, data: str | bytes, came: float) -> dict[str, Any]:
        if isinstance(data, str):
            raise CodecError("a request is a binary frame, and a text came")
        request = read_request(unpack(data), self.spec, self.config.names)
        deadline_s = request.deadline_s or self.config.deadline_ms / 1e3 or None
        until = None if deadline_s is None else came + deadline_s
        future = asyncio.wrap_future(self.batcher.submit(Job(row, request, until, came)))
        try:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            return await asyncio.wait_for(future, left)
        except TimeoutError:
            raise DeadlineError(f"no plan within {1e3 * (deadline_s or 0):g} ms") from None

    async def _send(self, connection: Any, data: str | bytes) -> None:
        await asyncio.wait_for(connection.send(data), self.config.send_timeout_s)


@contextmanager
def running(server: PolicyServer) -> Iterator[int]:
    """The server in a thread of its own, for as long as the context lasts; its port."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    opened: asyncio.Future[int] = loop.create_future()
    ready = threading.Event()
    failed: list[BaseException] = []

    def told(port: int) -> None:
        opened.set_result(port)
        ready.set()

    def work() -> None:
        try:
            loop.run_until_complete(server.serve(stop, told))
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="fastloop-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield opened.result()
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop.set)
        thread.join(10.0)
        if not thread.is_alive():
            loop.close()
