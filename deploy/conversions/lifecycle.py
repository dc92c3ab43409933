"""Transitions of the lifecycle as ROS 2 tells them."""

from __future__ import annotations

from typing import Any

from fastloop.deploy import lifecycle
from fastloop.deploy.messages import Messages

__all__ = ["STATES", "TRANSITIONS", "described", "transition_event"]

STATES = {
    "unconfigured": (1, "unconfigured"), "inactive": (2, "inactive"), "active": (3, "active"),
    "finalized": (4, "finalized"), "configuring": (10, "configuring"),
    "activating": (13, "activating"), "error_processing": (15, "errorprocessing"),
}  # fmt: skip
TRANSITIONS = {
    ("configure", "unconfigured"): 1, ("cleanup", "inactive"): 2, ("activate", "inactive"): 3,
    ("deactivate", "active"): 4, ("shutdown", "unconfigured"): 5, ("shutdown", "inactive"): 6,
    ("shutdown", "active"): 7, ("succeed", "configuring"): 10, ("fail", "configuring"): 11,
    ("error", "configuring"): 12, ("succeed", "activating"): 30, ("fail", "activating"): 31,
    ("error", "activating"): 32, ("succeed", "error_processing"): 60,
    ("fail", "error_processing"): 61,
}  # fmt: skip
"""Ids of ``lifecycle_msgs/msg/Transition``, by transition and the state before."""
DESTROY, CALLBACK_ERROR = 8, 99
LABELS = {
    "succeed": "transition_success", "fail": "transition_failure", "error": "transition_error",
}  # fmt: skip


def transition_event(
    messages: Messages, transition: str, before: str, after: str, stamp_ns: int
) -> Any:
    """``lifecycle_msgs/msg/TransitionEvent`` of a transition of `Lifecycle`.

    A shutdown on the way between two states, which ROS 2 does not have, is its ``destroy``.
    """
    state = messages.type("lifecycle_msgs/msg/State")
    return messages.type("lifecycle_msgs/msg/TransitionEvent")(
        stamp_ns,
        _transition(messages, transition, before),
        state(*STATES[before]),
        state(*STATES[after]),
    )


def described(messages: Messages, transition: str, before: str) -> Any:
    """``lifecycle_msgs/msg/TransitionDescription`` of a transition from the state `before`."""
    state = messages.type("lifecycle_msgs/msg/State")
    after = lifecycle.TRANSITIONS[before][transition]
    return messages.type("lifecycle_msgs/msg/TransitionDescription")(
        _transition(messages, transition, before), state(*STATES[before]), state(*STATES[after])
    )


def _transition(messages: Messages, transition: str, before: str) -> Any:
    other = DESTROY if transition == "shutdown" else CALLBACK_ERROR
    number = TRANSITIONS.get((transition, before), other)
    return messages.type("lifecycle_msgs/msg/Transition")(
        number, LABELS.get(transition, transition)
    )
