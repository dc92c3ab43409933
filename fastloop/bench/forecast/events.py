"""What may happen to a pedestrian, so that a forecast's probabilities can be held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from fastloop.datasets.agent_frame import MOVED

__all__ = ["CONCERNS", "EVENTS", "Event"]

Event = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a past (..., P, 2) and a future (..., T, 2), both in the agent frame, in m: truth values
(...)."""

ASIDE = 1.0  # m
SLOWER = 0.5


def _turns_left(past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """It ends more than 1 m to the left."""
    return future[..., -1, 1] > ASIDE


def _turns_right(past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """It ends more than 1 m to the right."""
    return future[..., -1, 1] < -ASIDE


def _slows_down(past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """It comes less than half as far as at its present speed."""
    come = (future[..., -1, :] - past[..., -1, :]).norm(dim=-1)
    return come < SLOWER * future.shape[-2] * _step(past)


def _moves(past: torch.Tensor) -> torch.Tensor:
    """Its present speed is no annotator's hand."""
    return _step(past) >= MOVED


def _step(past: torch.Tensor) -> torch.Tensor:
    return (past[..., -1, :] - past[..., -2, :]).norm(dim=-1)


EVENTS: Mapping[str, Event] = MappingProxyType(
    {"turns_left": _turns_left, "turns_right": _turns_right, "slows_down": _slows_down}
)

CONCERNS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"slows_down": _moves}
)
"""Events that mean something for some pasts only, and for which ones."""
