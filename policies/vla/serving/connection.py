"""Where a server is, and a connection on which nothing lasts longer than it may."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

__all__ = ["Address", "connect"]


@dataclass(frozen=True)
class Address:
    """A server that was looked up.

    Attributes:
        scheme: http or https.
        host, port: as in the URL.
        path: before each resource, without a slash at the end.
        places: what to connect to, in order: family and address.
    """

    scheme: str
    host: str
    port: int
    path: str
    places: tuple[tuple[int, Any], ...]

    @classmethod
    def resolved(cls, url: str, *, allow_remote: bool) -> Address:
        """Look a server up, once.

        Raises:
            ValueError: for what is no URL of a server, for a name that nobody knows, and for other
                machines unless `allow_remote`.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"expected http://host:port or https://host:port, got {url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("a base URL has no user, password, query or fragment; use api_key")
        if not re.fullmatch(r"[!-~]*", parts.path):
            raise ValueError(f"the path of {url!r} holds a sign that needs escaping")
        port = port or (443 if parts.scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{host!r} cannot be looked up: {error}") from error
        places = tuple((family, place) for family, _, _, _, place in found)
        remote = [place[0] for _, place in places if not ipaddress.ip_address(place[0]).is_loopback]
        if remote and not allow_remote:
            raise ValueError(
                f"{host!r} is another machine ({remote[0]}), which would be sent the pictures; "
                "give allow_remote=True where that is meant"
            )
        return cls(parts.scheme, host, port, parts.path.rstrip("/") or "/v1", places)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


@contextmanager
def connect(address: Address, until: float) -> Iterator[socket.socket]:
    """A connection to the first place that takes one, closed at the end.

    Args:
        address: where to.
        until: value of ``time.monotonic`` after which everything on it raises TimeoutError.

    Raises:
        OSError: where no place takes one.
    """
    with _connected(address, until) as sock:
        # http.client asks for no more than this class has
        yield cast(socket.socket, _TimedSocket(sock, until))


def _connected(address: Address, until: float) -> socket.socket:
    failure: OSError = ConnectionError("no address")
    for family, place in address.places:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_left(until))
            sock.connect(place)
            if address.scheme == "https":
                return ssl.create_default_context().wrap_socket(sock, server_hostname=address.host)
        except TimeoutError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


class _TimedSocket(io.RawIOBase):
    """What http.client needs of a socket. A socket's own timeout starts again with every byte, so
    that a server could keep a caller for ever; here one moment holds for all.

    Closing it leaves the socket open: http.client closes before it reads, and a socket is closed by
    whoever asked for it.
    """

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock = sock
        self.until = until

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(_left(self.until))
            rest = rest[self.sock.send(rest) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedSocket(self.sock, self.until))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.sock.settimeout(_left(self.until))
        return self.sock.recv_into(buffer)
