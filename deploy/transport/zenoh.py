"""The transport of ROS 2's zenoh middleware, without ROS.

Speaks what rmw_zenoh speaks (`fastloop.deploy.transport.names`). Unless told otherwise it listens
and connects on this computer only, finds nobody by multicast, and leaves shared memory alone.
"""

from __future__ import annotations

import atexit
import itertools
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from fastloop.deploy.clock import Clock, WallClock
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import SENSOR, SERVICE, Answer, Callback, QoS, Sample
from fastloop.deploy.transport.graph import Graph
from fastloop.deploy.transport.names import Endpoint, attach, read_attachment, topic_key
from fastloop.extras import require

__all__ = ["ZenohConfig", "ZenohPublisher", "ZenohTransport", "beside", "numbered"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CLOSE_S = 1.0  # for a thread that is in a callback
_TOKENS = 4096  # that may wait


@dataclass(frozen=True)
class ZenohConfig:
    """Where a node is and whom it meets.

    Attributes:
        node: its name, with its namespace.
        domain: ROS domain; nodes of different domains do not meet.
        mode: ``peer``, ``client`` (needs a router), or ``router`` (is one).
        listen: where others may connect, for instance ``tcp/127.0.0.1:7447``; port 0 is any.
        connect: where others listen; who is not there is tried again and again.
        remote: whether endpoints may be on other computers.
        shared_memory: whether messages above 3 kB go through shared memory where the other side
            takes them so.
        shared_memory_bytes: of the pool in ``/dev/shm``.
    """

    node: str = "/fastloop"
    domain: int = 0
    mode: str = "peer"
    listen: tuple[str, ...] = ("tcp/127.0.0.1:0",)
    connect: tuple[str, ...] = ("tcp/127.0.0.1:7447",)
    remote: bool = False
    shared_memory: bool = False
    shared_memory_bytes: int = 2**26

    def __post_init__(self) -> None:
        if self.mode not in ("peer", "client", "router"):
            raise ValueError(f"no zenoh mode {self.mode!r}; have: peer, client, router")
        for endpoint in (*self.listen, *self.connect):
            host = urlsplit("//" + endpoint.partition("/")[2]).hostname
            if host not in _LOOPBACK and not self.remote:
                raise ValueError(
                    f"{endpoint} is not on this computer ({', '.join(_LOOPBACK)}); say remote=true "
                    "to meet others"
                )

    def session(self) -> dict[str, Any]:
        """Zenoh's own configuration."""
        memory: dict[str, Any] = {"enabled": self.shared_memory}
        if self.shared_memory:
            pool = {"enabled": True, "pool_size": self.shared_memory_bytes}
            memory |= {"mode": "init", "transport_optimization": pool}
        return {
            "mode": self.mode,
            "listen/endpoints": [] if self.mode == "client" else self.listen,
            "connect/endpoints": self.connect,
            "connect/exit_on_failure": False,
            "connect/timeout_ms": -1,  # forever, and beside everything else
            "connect/retry": {
                "period_init_ms": 100, "period_max_ms": 1000, "period_increase_factor": 2,
            },
            "scouting/multicast/enabled": False,
            "timestamping/enabled": True,  # publishers that keep messages for latecomers need it
            # With two batches of 64 kB, as by default, most of an image is lost on a busy machine.
            "transport/link/tx/queue/size/data": 16,
            "transport/shared_memory": memory,
        }  # fmt: skip


def numbered(config: ZenohConfig) -> ZenohConfig:
    """`config` with free ports in the place of ports 0, for when others have to be told them."""
    listen = []
    for endpoint in config.listen:
        if endpoint.endswith(":0"):
            host = urlsplit("//" + endpoint.partition("/")[2]).hostname or ""
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
                free.bind((host, 0))
                endpoint = f"{endpoint[:-1]}{free.getsockname()[1]}"
        listen.append(endpoint)
    return replace(config, listen=tuple(listen))


def beside(config: ZenohConfig, node: str, listen: tuple[str, ...] = ()) -> ZenohConfig:
    """For a node that is heard wherever that of `config` is, and goes on when that one has died.

    It listens itself, at any port by default, and connects to that one and to all that it connects
    to. Peers learn of each other by gossip and connect directly, so that nobody needs to be told
    where it listens; clients need a router.
    """
    own = listen or tuple(endpoint.rpartition(":")[0] + ":0" for endpoint in config.listen)
    there = [one.replace("/0.0.0.0:", "/127.0.0.1:").replace("/[::]:", "/[::1]:")
             for one in config.listen]  # fmt: skip
    if config.mode == "client":
        return replace(config, node=node, listen=())
    connect = (*there, *config.connect)
    return replace(config, node=node, mode="peer", listen=own, connect=connect)


class ZenohTransport:
    """One zenoh session: one node of the ROS graph.

    Args:
        messages: the types and their codec.
        config: where it is and whom it meets.
        clock: stamps what arrives.

    Attributes:
        graph: who else is there.
        shared: samples that came through shared memory.

    Raises:
        OSError: when it cannot listen where it should.
        MissingExtraError: without the packages of the extra ``ros``.
    """

    def __init__(
        self, messages: Messages, config: ZenohConfig | None = None, clock: Clock | None = None
    ) -> None:
        self.messages = messages
        self.config = config or ZenohConfig()
        self.clock = clock or WallClock()
        self.graph = Graph()
        self.shared = 0
        self._zenoh = require("zenoh", extra="ros")
        self._ext = require("zenoh.ext", extra="ros")
        settings = self._zenoh.Config()
        for key, value in self.config.session().items():
            settings.insert_json5(key, json.dumps(value))
        try:
            self._session = self._zenoh.open(settings)
        except self._zenoh.ZError as error:
            raise OSError(
                f"zenoh cannot listen at {', '.join(self.config.listen)}: {error}"
            ) from error
        self._id = str(self._session.zid())
        self._numbers = itertools.count(1)
        self._endpoints: list[Endpoint] = []
        self._held: list[Any] = []  # what is undeclared when it is forgotten
        self._listeners: list[tuple[Any, threading.Thread]] = []
        self._raised: dict[str, str] = {}
        self._closed = threading.Event()
        self._announce(Endpoint(self.config.domain, self._id, 0, "NN", self.config.node))
        tokens = self._session.liveliness().declare_subscriber(
            f"@ros2_lv/{self.config.domain}/**",
            self._zenoh.handlers.FifoChannel(_TOKENS),
            history=True,
        )
        self._listen(tokens, self._alive, "tokens")
        # A thread that waits in zenoh when Python ends brings the process down.
        atexit.register(self.close)

    def subscribe(self, topic: str, type: str, callback: Callback, qos: QoS = SENSOR) -> None:
        """Call `callback` with the samples of `topic`, in a thread of the topic's own.

        While a callback runs the newest `qos.depth` samples wait for it; older ones are dropped.
        What a callback raises is kept for `faults`, and the next sample is taken.
        """
        endpoint, key = self._endpoint("MS", topic, type, qos)
        ring = self._zenoh.handlers.RingChannel(qos.depth)
        if qos.transient_local:
            history = self._ext.HistoryConfig(detect_late_publishers=True, max_samples=qos.depth)
            found = self._ext.declare_advanced_subscriber(self._session, key, ring, history=history)
        else:
            found = self._session.declare_subscriber(key, ring)
        self._listen(found, lambda sample: self._received(sample, endpoint, callback), topic)
        self._announce(endpoint)

    def publisher(self, topic: str, type: str, qos: QoS = SENSOR) -> ZenohPublisher:
        """What sends on `topic`. It never waits for a slow reader for more than milliseconds: what
        does not fit between is lost."""
        endpoint, key = self._endpoint("MP", topic, type, qos)
        reliability = self._zenoh.Reliability
        options = {
            "encoding": "application/cdr",
            "congestion_control": self._zenoh.CongestionControl.DROP,
            "express": True,
            "reliability": reliability.RELIABLE if qos.reliable else reliability.BEST_EFFORT,
        }
        if qos.transient_local:
            found = self._ext.declare_advanced_publisher(
                self._session, key, **options, publisher_detection=True,
                cache=self._ext.CacheConfig(qos.depth),
            )  # fmt: skip
        else:
            found = self._session.declare_publisher(key, **options)
        self._announce(endpoint)
        return ZenohPublisher(self, found, endpoint)

    def serve(self, service: str, type: str, answer: Answer) -> None:
        """Answer the requests of `service`, one after the other, in a thread of its own.

        A request that cannot be decoded, or to which `answer` raises, gets no response: its client
        hears that there is none.
        """
        for part in ("_Request", "_Response"):
            self.messages.prepare(type + part)
        endpoint, key = self._endpoint("SS", service, type, SERVICE)
        queries = self._zenoh.handlers.RingChannel(SERVICE.depth)
        found = self._session.declare_queryable(key, queries, complete=True)
        self._listen(found, lambda query: self._asked(query, endpoint, key, answer), service)
        self._announce(endpoint)

    @property
    def connected(self) -> int:
        """Sessions that this one is linked to."""
        if self._closed.is_set():
            return 0
        info = self._session.info
        return len(info.peers_zid()) + len(info.routers_zid())

    def faults(self) -> list[str]:
        """Why messages may be missing: others use our topics with other types, or a callback failed
        (the last time of each topic)."""
        mismatches = (self.graph.faults(ours) for ours in list(self._endpoints))
        return [*itertools.chain.from_iterable(mismatches), *list(self._raised.values())]

    def close(self) -> None:
        """Leave, and free shared memory; nothing is called back afterwards. May be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        for found, _ in self._listeners:
            found.undeclare()
        for _, thread in self._listeners:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_S)
        self._held.clear()
        self._session.close()

    def _endpoint(self, kind: str, topic: str, type: str, qos: QoS) -> tuple[Endpoint, str]:
        if self._closed.is_set():
            raise OSError(f"{topic}: the transport is closed")
        self.messages.prepare(type)
        type_hash = self.messages.hash(type)
        key = topic_key(self.config.domain, topic, type, type_hash)
        number = next(self._numbers)
        domain, node = self.config.domain, self.config.node
        return Endpoint(domain, self._id, number, kind, node, topic, type, type_hash, qos), key

    def _announce(self, endpoint: Endpoint) -> None:
        self._held.append(self._session.liveliness().declare_token(endpoint.token()))
        if endpoint.topic:
            self._endpoints.append(endpoint)

    def _listen(self, subscriber: Any, callback: Callable[[Any], None], name: str) -> None:
        """In a thread of our own: the one that zenoh would make keeps Python from ending."""

        def listen() -> None:
            for sample in subscriber:
                if self._closed.is_set():
                    return
                try:
                    callback(sample)
                except Exception as error:  # of whoever subscribes; others still want theirs
                    self._raised[name] = f"{name}: {error!r} was raised by who is called back"

        thread = threading.Thread(target=listen, name=name, daemon=True)
        self._listeners.append((subscriber, thread))
        thread.start()

    def _asked(self, query: Any, endpoint: Endpoint, key: str, answer: Answer) -> None:
        """The response has the request's number and id, by which its client knows it."""
        with query:
            data = query.payload.to_bytes() if query.payload else b""
            request = self.messages.decode(endpoint.type + "_Request", data)
            response = self.messages.encode(answer(request))
            asked = read_attachment(query.attachment.to_bytes()) if query.attachment else None
            number, _, gid = asked or (0, 0, endpoint.gid())
            query.reply(key, response, attachment=attach(number, self.clock.wall_ns(), gid))

    def _alive(self, token: Any) -> None:
        gone = token.kind == self._zenoh.SampleKind.DELETE
        (self.graph.vanished if gone else self.graph.appeared)(str(token.key_expr))

    def _received(self, sample: Any, endpoint: Endpoint, callback: Callback) -> None:
        received_ns = self.clock.wall_ns()
        if self.config.shared_memory and sample.payload.as_shm() is not None:
            self.shared += 1
        data = sample.payload.to_bytes()
        stamp_ns = self.messages.stamp(endpoint.type, data)
        if stamp_ns is None and sample.attachment:
            attachment = read_attachment(sample.attachment.to_bytes())
            stamp_ns = attachment[1] if attachment else None
        callback(Sample(endpoint.topic, endpoint.type, data, stamp_ns, received_ns))


class ZenohPublisher:
    """Sends messages on one topic; made by `ZenohTransport.publisher`."""

    def __init__(self, transport: ZenohTransport, publisher: Any, endpoint: Endpoint) -> None:
        self._transport = transport
        self._publisher = publisher
        self._endpoint = endpoint
        self._gid = endpoint.gid()
        self._numbers = itertools.count(1)

    def publish(self, message: Any, stamp_ns: int) -> None:
        """Send a message object of the topic's type, stamped with nanoseconds since 1970.

        Nobody may be there to hear it: that is no error.

        Raises:
            BadMessage: where it is none of that type.
            OSError: when the transport is closed.
        """
        self.send(self._transport.messages.encode(message), stamp_ns)

    def send(self, data: bytes, stamp_ns: int) -> None:
        """Send a message that is encoded already.

        Raises:
            OSError: when the transport is closed.
        """
        attachment = attach(next(self._numbers), stamp_ns, self._gid)
        try:
            self._publisher.put(data, attachment=attachment)
        except self._transport._zenoh.ZError as error:
            raise OSError(f"{self._endpoint.topic} cannot be sent: {error}") from error
