"""What the recorder asks of a scripted expert."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Expert"]


class Expert(Protocol):
    """Solves a task from any state, reading privileged state and never stepping."""

    def reset(self, sim: Any) -> None:
        """Forget what was under way: the present state did not follow from `act`."""
        ...

    def act(self, sim: Any) -> NDArray[Any]:
        """The action (A,) of this tick."""
        ...

    def nudge(self, sim: Any, rng: np.random.Generator) -> NDArray[Any]:
        """A random action (A,) of a disturbance: away from what the expert would do, and safe."""
        ...
