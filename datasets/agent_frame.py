"""Positions as an agent sees them: it stands at the origin and looks along x."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AgentFrame"]

MOVED = 0.2  # m; annotations of who stands still wander by less


@dataclass(frozen=True)
class AgentFrame:
    """The frames of n agents.

    Attributes:
        origin: (n, 2) m, where they are now.
        heading: (n,) rad, the direction of x in the world.
        still: (n,) who has not moved, and has no heading: the axes of the world stay, heading 0.
    """

    origin: NDArray[np.float64]
    heading: NDArray[np.float64]
    still: NDArray[np.bool_]

    @classmethod
    def of(cls, past: NDArray[np.floating], moved: float = MOVED) -> AgentFrame:
        """The frames of agents with a `past` (n, P, 2), in m, whose last position is the present.

        An agent looks away from the newest position that is at least `moved` from where it is: for
        those who walk that is their last step, and for those who dawdle not the annotator's hand.
        """
        origin = past[:, -1].astype(np.float64)
        come = origin[:, None] - past
        far = np.hypot(come[..., 0], come[..., 1]) >= moved
        newest = far.shape[1] - 1 - far[:, ::-1].argmax(1)
        x, y = come[np.arange(len(come)), newest].T
        still = ~far.any(1)
        return cls(origin, np.where(still, 0.0, np.arctan2(y, x)), still)

    def seen(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions (n, ..., 2) of the world, in m, in each agent's frame."""
        return _turned(positions - self._spread(self.origin, positions), -self.heading)

    def world(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions (n, ..., 2) of each agent's frame, in m, in the world."""
        return _turned(positions, self.heading) + self._spread(self.origin, positions)

    @staticmethod
    def _spread(origin: NDArray[np.float64], like: NDArray[np.floating]) -> NDArray[np.float64]:
        return origin.reshape(len(origin), *[1] * (like.ndim - 2), 2)


def _turned(vectors: NDArray[np.floating], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, ..., 2) turned by the angle of its row."""
    angle = angle.reshape(-1, *[1] * (vectors.ndim - 2))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
