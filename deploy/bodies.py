"""What moves: how it reads a policy's actions, what it may be asked, and how it comes to rest."""

from __future__ import annotations

from typing import Protocol

from fastloop.deploy.motion import Floats, Motion, State

__all__ = ["Body"]


class Body(Protocol):
    """A vehicle or an arm. Everything is a pure function of its arguments."""

    @property
    def dim(self) -> int:
        """Elements D of a point."""
        ...

    def motion(self, actions: Floats, *, state: State, time: float, period_s: float) -> Motion:
        """A policy's `actions` (T, A) in the fixed frame.

        Args:
            actions: in the policy's units; the first for the tick of its newest observation.
            state: that was observed.
            time: of that tick, monotonic s.
            period_s: between ticks.

        Raises:
            ValueError: they have another shape.
        """
        ...

    def faults(self, motion: Motion) -> list[str]:
        """The gate's reasons against `motion`."""
        ...

    def apart(self, motion: Motion, state: State, t: float) -> str:
        """How `motion` at `t` lies too far from what was measured; empty where it does not."""
        ...

    def leave_by(self, motion: Motion) -> float:
        """The last moment from which the rest of `motion` still suffices for a comfort stop."""
        ...

    def comfort_stop(self, motion: Motion, t: float) -> Motion:
        """Along `motion` from `t` on, to rest with bounded jerk."""
        ...

    def hard_stop(self, state: State, t: float, along: Motion | None) -> Motion:
        """As quickly as possible to rest from `state`, along `along` where it is near."""
        ...
