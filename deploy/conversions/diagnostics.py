"""What a node says of itself, as ``DiagnosticArray``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from fastloop.deploy.messages import Messages

__all__ = ["Level", "Status", "diagnostics"]


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Status:
    """What one part says.

    Attributes:
        name: of the part, for instance ``fastloop: loop``.
        level: how bad it is.
        message: in words; an error's own text, whole.
        values: what was measured, by its name and unit.
        hardware: the machine it runs on.
    """

    name: str
    level: Level
    message: str
    values: Mapping[str, object] = field(default_factory=dict)
    hardware: str = ""


def diagnostics(messages: Messages, stamp_ns: int, statuses: Sequence[Status]) -> Any:
    """``diagnostic_msgs/msg/DiagnosticArray``; numbers are written with six digits."""
    pair = messages.type("diagnostic_msgs/msg/KeyValue")
    status = messages.type("diagnostic_msgs/msg/DiagnosticStatus")
    found = [
        status(
            int(one.level), one.name, one.message, one.hardware,
            [pair(key, _text(value)) for key, value in one.values.items()],
        )
        for one in statuses
    ]  # fmt: skip
    return messages.type("diagnostic_msgs/msg/DiagnosticArray")(
        messages.header(stamp_ns, ""), found
    )


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
