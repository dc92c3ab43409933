"""The states of a ROS 2 managed node, and what may follow on what."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["COMMANDS", "TRANSITIONS", "Asked", "IllegalTransitionError", "Lifecycle"]

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

COMMANDS = ("configure", "activate", "deactivate", "cleanup", "shutdown")
"""Transitions that somebody may ask for; the others tell how those went."""

Listener = Callable[[str, str, str], None]
"""(transition, state before, state after)"""


class IllegalTransitionError(ValueError):
    """A transition that the present state does not have."""


class Asked:
    """A transition that somebody asks for.

    Args:
        transition: its name, one of `COMMANDS`.
    """

    def __init__(self, transition: str) -> None:
        self.transition = transition
        self._success = False
        self._answered = threading.Event()

    def answer(self, success: bool) -> None:
        """It was taken, or refused, or did not succeed."""
        self._success = success
        self._answered.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it was taken and went well, as soon as that is known."""
        return self._answered.wait(timeout_s) and self._success


@dataclass
class Lifecycle:
    """A managed node's state (ROS 2 design, "Managed nodes").

    `configure` and `activate` take time: they lead to `configuring` and `activating`, from which
    `succeed`, `fail` or `error` lead on.

    Attributes:
        state: the present one.
        listeners: are told of every transition.
        asked: what others ask for and nobody has looked at.
    """

    state: str = "unconfigured"
    listeners: list[Listener] = field(default_factory=list)
    asked: deque[Asked] = field(default_factory=deque)

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

    def commands(self) -> tuple[str, ...]:
        """What may be asked for in the present state."""
        return tuple(name for name in COMMANDS if name in TRANSITIONS[self.state])

    def ask(self, transition: str) -> Asked:
        """Ask for a transition, from any thread; who takes transitions looks at it between two
        ticks. When all has ended it is refused at once."""
        asked = Asked(transition)
        self.asked.append(asked)
        if self.state == "finalized":
            self.heard()
        return asked

    def heard(self) -> Asked | None:
        """The next thing asked for that the present state allows; others are refused."""
        while self.asked:
            asked = self.asked.popleft()
            if asked.transition in self.commands():
                return asked
            asked.answer(False)
        return None
