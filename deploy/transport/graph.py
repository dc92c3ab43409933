"""Who else is there, from their liveliness tokens, and who will never be heard."""

from __future__ import annotations

import threading

from fastloop.deploy.transport.names import Endpoint

__all__ = ["Graph"]

_OTHER_SIDE = {"MP": "MS", "MS": "MP", "SS": "SC", "SC": "SS"}


class Graph:
    """The endpoints that are alive."""

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()

    def appeared(self, token: str) -> None:
        """A token was declared; one that is not understood is passed over."""
        if endpoint := Endpoint.parse(token):
            with self._lock:
                self._endpoints[token] = endpoint

    def vanished(self, token: str) -> None:
        """A token is gone."""
        with self._lock:
            self._endpoints.pop(token, None)

    def endpoints(self) -> list[Endpoint]:
        """Everybody, in no order."""
        with self._lock:
            return list(self._endpoints.values())

    def counterparts(self, ours: Endpoint) -> list[Endpoint]:
        """Who publishes what `ours` subscribes to, or calls what it serves, or the other way
        round, in other sessions."""
        return [
            other
            for other in self.endpoints()
            if (other.topic, other.kind) == (ours.topic, _OTHER_SIDE[ours.kind])
            and other.session != ours.session
        ]

    def faults(self, ours: Endpoint) -> list[str]:
        """Each counterpart with another type, or another version of it: nothing passes between it
        and us, and neither gets an error."""
        return [
            f"{ours.topic}: {other.node} has {other.type} with {other.type_hash}, this node has "
            f"{ours.type} with {ours.type_hash}: no message passes between them"
            for other in self.counterparts(ours)
            if (other.type, other.type_hash) != (ours.type, ours.type_hash)
        ]
