"""Writes MCAP files as ``ros2 bag`` and viewers like Foxglove read them: CDR, with its schemas."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import Sample
from fastloop.extras import require

__all__ = ["BagWriter"]

COMPRESSIONS = ("none", "lz4", "zstd")


class BagWriter:
    """One file, which is there under its name only when it is whole.

    Args:
        path: of the ``.mcap`` file; until it is whole, ``.partial`` follows its name.
        messages: the types that may be written.
        compression: ``none`` (images are compressed already), ``lz4`` or ``zstd``.

    Raises:
        OSError: when it cannot be written.
    """

    def __init__(self, path: str | Path, messages: Messages, *, compression: str = "none") -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"no compression {compression!r}; have: {', '.join(COMPRESSIONS)}")
        self.path = Path(path)
        self.messages = messages
        mcap = require("mcap.writer", extra="ros")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._stream = self._partial.open("wb")
        kind = getattr(mcap.CompressionType, compression.upper())
        self._writer: Any = mcap.Writer(self._stream, compression=kind)
        self._writer.start(profile="ros2", library="fastloop")
        self._schemas: dict[str, int] = {}
        self._channels: dict[tuple[str, str], int] = {}

    def write(self, sample: Sample) -> None:
        """Add one message.

        Raises:
            ValueError: for a type that is not known.
            OSError: when it cannot be written.
        """
        stamp = sample.received_ns if sample.stamp_ns is None else sample.stamp_ns
        # A header may hold anything, and what is below 0 the format does not have.
        self._writer.add_message(
            self._channel(sample.topic, sample.type),
            log_time=max(0, sample.received_ns),
            publish_time=max(0, stamp),
            data=sample.data,
        )

    def _channel(self, topic: str, type: str) -> int:
        if (topic, type) not in self._channels:
            if type not in self._schemas:
                text = self.messages.definition(type).encode()
                self._schemas[type] = self._writer.register_schema(type, "ros2msg", text)
            self._channels[topic, type] = self._writer.register_channel(
                topic, "cdr", self._schemas[type], {"topic_type_hash": self.messages.hash(type)}
            )
        return self._channels[topic, type]

    def close(self) -> None:
        """Make it whole.

        Raises:
            OSError: when it cannot be written.
        """
        try:
            self._writer.finish()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._partial.replace(self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing."""
        with suppress(OSError):  # what is still to be written needs no disk
            self._stream.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()
