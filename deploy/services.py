"""Services by which others manage the node: what it is in, what it may do, and what it shall do."""

from __future__ import annotations

from typing import Any

from fastloop.deploy.conversions.lifecycle import STATES, TRANSITIONS, described
from fastloop.deploy.lifecycle import COMMANDS, Lifecycle
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import Transport

__all__ = ["serve_lifecycle"]


def serve_lifecycle(
    lifecycle: Lifecycle, transport: Transport, messages: Messages, node: str
) -> None:
    """Serve ``<node>/get_state``, ``change_state``, ``get_available_states`` and
    ``get_available_transitions``, as rclcpp's lifecycle nodes do.

    A change is answered when it has been made, so that of ``configure`` takes as long as the
    weights do; what the present state does not allow is answered with ``success=false``.

    Args:
        lifecycle: of the node, which takes what is asked.
        transport: to serve on.
        messages: the types.
        node: its ROS name, ``/fastloop``.
    """

    def kind(name: str) -> str:
        return f"lifecycle_msgs/srv/{name}"

    def response(name: str, value: Any) -> Any:
        return messages.type(kind(name) + "_Response")(value)

    def get_state(request: Any) -> Any:
        state = messages.type("lifecycle_msgs/msg/State")
        return response("GetState", state(*STATES[lifecycle.state]))

    def change_state(request: Any) -> Any:
        transition = _asked(request.transition.id, request.transition.label, lifecycle.state)
        success = bool(transition) and lifecycle.ask(transition).wait()
        return response("ChangeState", success)

    def get_states(request: Any) -> Any:
        state = messages.type("lifecycle_msgs/msg/State")
        return response("GetAvailableStates", [state(*one) for one in STATES.values()])

    def get_transitions(request: Any) -> Any:
        state = lifecycle.state
        have = [described(messages, name, state) for name in lifecycle.commands()]
        return response("GetAvailableTransitions", have)

    transport.serve(f"{node}/get_state", kind("GetState"), get_state)
    transport.serve(f"{node}/change_state", kind("ChangeState"), change_state)
    transport.serve(f"{node}/get_available_states", kind("GetAvailableStates"), get_states)
    transport.serve(
        f"{node}/get_available_transitions", kind("GetAvailableTransitions"), get_transitions
    )


def _asked(number: int, label: str, state: str) -> str:
    """The transition that is meant: a label counts more than a number, as callers that give one
    leave the other at 0. Empty for none that can be asked for."""
    if label:
        return label if label in COMMANDS else ""
    return next(
        (
            name
            for (name, before), known in TRANSITIONS.items()
            if (known, before) == (number, state) and name in COMMANDS
        ),
        "",
    )
