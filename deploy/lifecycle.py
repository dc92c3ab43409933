"""The states of a ROS 2 managed node, and what may follow on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["IllegalTransitionError", "Lifecycle"]

TRANSITIONS = {
    "unconfigured": {"configure": "configuring", "shutdown": "finalized"},
    "configuring": {"succeed": "inactive", "fail": "unconfigured", "error": "error_processing",
                    "shutdown": "finalized"},
    "inactive": {"activate": "activating", "cleanup": "unconfigured", "shutdown": "finalized"},
    "activating": {"succeed": "active", "fail": "inactive", "error": "error_processing",
                   "shutdown": "finalized"},
    "active": {"deactivate": "inactive", "error": "error_processing", "shutdown": "finalized"},
    "error_processing": {"succeed": "unconfigured", "fail": "finalized", "shutdown": "finalized"},
    "finalized": {},
}  # fmt: skip

Listener = Callable[[str, str, str], None]
"""(transition, state before, state after)"""


class IllegalTransitionError(ValueError):
    """A transition that the present state does not have."""


@dataclass
class Lifecycle:
    """A managed node's state (ROS 2 design, "Managed nodes").

    `configure` and `activate` take time: they lead to `configuring` and `activating`, from which
    `succeed`, `fail` or `error` lead on.

    Attributes:
        state: the present one.
        listeners: are told of every transition.
    """

    state: str = "unconfigured"
    listeners: list[Listener] = field(default_factory=list)

    def go(self, transition: str) -> str:
        """Take `transition` and return the new state.

        Raises:
            IllegalTransitionError: the present state has no such transition; those it has are
                listed.
        """
        choices = TRANSITIONS[self.state]
        if transition not in choices:
            have = ", ".join(choices) or "none"
            raise IllegalTransitionError(
                f"cannot {transition!r} while {self.state}; transitions from here: {have}"
            )
        before, self.state = self.state, choices[transition]
        for listener in self.listeners:
            listener(transition, before, self.state)
        return self.state
