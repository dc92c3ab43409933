"""Joint states, in the order in which a policy names the joints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastloop.deploy.messages import BadMessage
from fastloop.deploy.motion import State

__all__ = ["arm_state"]


def arm_state(message: Any, names: Sequence[str], *, time: float) -> State:
    """What a ``JointState`` says of the joints `names`, in rad and rad/s (m and m/s of slides).

    Others may be in it. Velocities that it does not tell are 0.

    Args:
        time: monotonic s at which it held.

    Raises:
        BadMessage: a joint is missing or there twice, or a number is missing or not finite.
    """
    given = list(message.name)
    if missing := [name for name in names if given.count(name) != 1]:
        raise BadMessage(
            f"joints {', '.join(missing)} must each be there once; there are {', '.join(given)}"
        )
    if len(message.position) != len(given) or len(message.velocity) not in (0, len(given)):
        raise BadMessage(
            f"{len(given)} joints with {len(message.position)} positions and "
            f"{len(message.velocity)} velocities"
        )
    places = [given.index(name) for name in names]
    positions = np.array(message.position, np.float64)[places]
    velocities = np.zeros(len(names))
    if len(message.velocity):
        velocities = np.array(message.velocity, np.float64)[places]
    if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
        raise BadMessage("joint states with a number that is not finite")
    return State(time, positions, velocities)
