"""Models that live in an engine of their own: a client, a planner that asks one, launch lines."""

from fastloop.policies.vla.serving.client import (
    Completion,
    EngineClient,
    EngineError,
    Fault,
    Sampling,
)
from fastloop.policies.vla.serving.launch import Launch, launch_command
from fastloop.policies.vla.serving.planner import ServedPlanner

__all__ = [
    "Completion",
    "EngineClient",
    "EngineError",
    "Fault",
    "Launch",
    "Sampling",
    "ServedPlanner",
    "launch_command",
]
