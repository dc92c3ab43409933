"""A connection to a policy server that speaks openpi's protocol, ours or anybody's."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from fastloop.deploy.server.codec import CodecError, pack, unpack
from fastloop.extras import require

__all__ = ["Client", "RemoteError"]

MAX_MESSAGE = 64 * 2**20


class RemoteError(ConnectionError):
    """A server could not be reached, did not answer in time, or answered with an error."""


class Client:
    """Asks one question at a time. A connection that breaks is made anew for the next question.

    An answer that comes too late would be taken for that of the next question, so a connection
    whose answer was not waited for is given up.

    Args:
        url: such as ``ws://127.0.0.1:8000``.
        timeout_s: for connecting, and for an answer where the question says nothing else.
        api_key: sent as ``Authorization: Api-Key ...``; empty for none.

    Raises:
        RemoteError: there is no such server.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, api_key: str = "") -> None:
        if not url.startswith(("ws://", "wss://")):
            raise ValueError(f"a server's address begins with ws:// or wss://, got {url!r}")
        self.url = url
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._connection: Any = None
        self._open = ExitStack()
        self._lock = threading.Lock()
        self.metadata: Mapping[str, Any] = {}
        self._connect(time.monotonic() + timeout_s)

    def infer(
        self, message: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The server's answer to `message`.

        Raises:
            RemoteError: there is none in time, or it is an error; the server's words are in it.
            CodecError: `message` cannot be sent.
        """
        data = pack(message)
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        until = time.monotonic() + limit_s
        with self._lock:
            if self._connection is None:
                self._connect(until)
            try:
                self._connection.send(data)
                told = self._connection.recv(timeout=max(until - time.monotonic(), 0.0))
                found = None if isinstance(told, str) else unpack(told)
            except TimeoutError as error:
                self.close()
                raise RemoteError(f"{self.url} did not answer within {limit_s:.3g} s") from error
            except CodecError as error:
                self.close()
                raise RemoteError(f"{self.url} answered with {error}") from error
            except (OSError, self._closed) as error:
                self.close()
                raise RemoteError(f"{self.url} broke off: {error}") from error
        if found is None:
            raise RemoteError(f"{self.url} answered with an error:\n{told}")
        if not isinstance(found, dict):
            raise RemoteError(f"{self.url} answered with a {type(found).__name__}, not a map")
        return found

    def close(self) -> None:
        """Give the connection up."""
        self._connection = None
        self._open.close()

    @property
    def _closed(self) -> type[Exception]:
        closed: type[Exception] = require("websockets.exceptions", extra="serve").WebSocketException
        return closed

    def _connect(self, until: float) -> None:
        sync = require("websockets.sync.client", extra="serve")
        try:
            connecting = sync.connect(
                self.url,
                compression=None,
                max_size=MAX_MESSAGE,
                open_timeout=max(until - time.monotonic(), 0.001),
                close_timeout=0.2,  # it may be broken: do not wait long for a farewell
                additional_headers=self._headers,
                proxy=None,
            )
            self._connection = self._open.enter_context(connecting)
            told = self._connection.recv(timeout=max(until - time.monotonic(), 0.0))
            metadata = unpack(told) if isinstance(told, bytes) else None
        except (OSError, TimeoutError, CodecError, self._closed) as error:
            self.close()
            raise RemoteError(
                f"{self.url} cannot be reached as a policy server: {error}"
            ) from error
        if not isinstance(metadata, dict):
            self.close()
            raise RemoteError(f"{self.url} is no policy server: it does not describe itself")
        self.metadata = metadata
