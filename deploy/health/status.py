"""The node's health in words and numbers, as ``/diagnostics`` and Prometheus tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastloop.deploy.node import Node

__all__ = ["ERROR", "OK", "STALE", "WARN", "Health", "details", "health_of"]

OK, WARN, ERROR, STALE = range(4)
"""Levels of ``diagnostic_msgs/msg/DiagnosticStatus``."""


@dataclass(frozen=True)
class Health:
    """What the node says of itself.

    Attributes:
        level: `OK` to `STALE`.
        name: of the node.
        message: in a sentence.
        values: name to value, for people and for tools.
        key: what counts as a change.
    """

    level: int
    name: str
    message: str
    values: dict[str, str]
    key: tuple[object, ...]


def health_of(node: Node) -> Health:
    """Of `node` now; quick, as it is asked every tick."""
    state = node.lifecycle.state
    rung = node.last.rung if node.last is not None and state == "active" else -1
    level, message = _level(node, state, rung)
    return Health(level, node.name, message, {}, (level, state, str(rung)))


def details(node: Node) -> dict[str, str]:
    """Everything that is counted, as text."""
    told = {"state": node.lifecycle.state, "last_error": node.error}
    loop = node.loop
    if loop is None:
        return told
    last = node.last
    told["last_error"] = loop.last_error or node.error
    told["rung"] = "" if last is None else str(last.rung)
    told["reason"] = "" if last is None else last.reason
    told["variant"] = "" if last is None else last.variant
    told["skipped_ticks"] = str(node.schedule.skipped if node.schedule else 0)
    told["unsent"] = str(node.unsent)
    told |= {f"rung_{rung}": str(loop.rungs[rung]) for rung in range(4)}
    told |= {f"count/{name}": str(count) for name, count in sorted(loop.counts.items())}
    told |= {f"age_s{topic}": f"{age:.3f}" for topic, age in loop.inputs.ages().items()}
    dropped = dict(loop.inputs.counts)
    told |= {f"messages{topic}/{why}": str(n) for (topic, why), n in sorted(dropped.items())}
    for stage, summary in loop.stages.summary(last_minute=True).items():
        told |= {f"{stage}/{name}": f"{value:.3f}" for name, value in summary.items()}
    outcome = loop.last_outcome
    if outcome is not None and outcome.planned is not None:
        report = outcome.planned.report
        told["accelerator"] = report.name
        told["accelerator_engagement"] = f"{report.engagement:.3f}"
        told["network_evaluations"] = str(report.network_evaluations)
    faults = [*node.transport.faults()]
    for listener in node.listeners:
        faults += listener.faults()
    told["faults"] = "; ".join(faults)
    if node.watchdog is not None:
        told["watchdog"] = "alive" if node.watchdog.alive() else "gone"
    return told


def _level(node: Node, state: str, rung: int) -> tuple[int, str]:
    if state != "active":
        if node.error:
            return ERROR, f"{state}: {node.error}"
        return (WARN if node.waiting else OK), node.waiting or state
    assert node.last is not None or rung < 0
    if node.watchdog is not None and not node.watchdog.alive():
        return ERROR, "the watchdog is gone"
    if node.mute:
        return ERROR, f"plans do not go out: {node.mute}"
    if rung <= 0:
        return OK, "fresh plans" if rung == 0 else "active"
    reason = node.last.reason if node.last is not None else ""
    return (WARN if rung == 1 else ERROR), f"rung {rung}: {reason}"
