"""How soon a vehicle would collide if everybody kept on as they do, as nuPlan asks it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.collisions import BEHIND, Collision, angles_from
from fastloop.sims.driving.lanes import LanePlace
from fastloop.sims.driving.motion import Motion, Traffic, meeting

__all__ = ["BOUND_S", "HORIZON_S", "STANDING", "concerns", "time_to_collision"]

BOUND_S = 0.95
HORIZON_S = 3.0
STEP_S = 0.1
STANDING = 0.005  # m/s
AHEAD = np.deg2rad(30)


def concerns(
    ego: Motion, others: Motion, within_one_lane: NDArray[np.bool_], crossing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) which of the others the ego must heed: those ahead, and those beside it where it is not
    within one lane of the road or where lanes cross; all arguments row by row.
    """
    angle = angles_from(ego, others)
    heed: NDArray[np.bool_] = (angle < AHEAD) | ((~within_one_lane | crossing) & (angle <= BEHIND))
    return heed & (ego.speed > STANDING)


def time_to_collision(
    ego: Motion,
    traffic: Traffic,
    place: LanePlace,
    found: Sequence[Collision],
    within_one_lane: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Seconds to the next collision at constant velocities, at each of T moments.

    Looked at in steps of 0.1 s to less than 3 s, as in nuPlan. Whoever the ego collided with is
    left out from then on; at the moment of a collision at fault it is 0.

    Args:
        ego: at T moments.
        traffic: the others at these.
        place: of the ego among the lanes.
        found: the ego's `collisions`.
        within_one_lane: (T,) whether it was on the road and within one lane.

    Returns:
        (T,) inf where there is none to come, or the ego stands.
    """
    until = np.full(len(traffic.ids), len(ego))
    for collision in found:
        until[traffic.ids.index(collision.who)] = collision.moment
    at = traffic.moment
    heed = concerns(ego[at], traffic.motion, within_one_lane[at], place.crossing[at])
    rows = np.flatnonzero(heed & (at < until[traffic.who]))
    begins, ceases = meeting(ego[at[rows]], traffic.motion[rows])
    # The first step within the contact, with some room for rounding.
    with np.errstate(invalid="ignore"):
        step = np.maximum(np.ceil(begins / STEP_S - 1e-9), 1) * STEP_S
        counts = (begins <= ceases) & (step <= ceases + 1e-9) & (step < HORIZON_S - STEP_S / 2)
    seconds = np.full(len(ego), np.inf)
    np.minimum.at(seconds, at[rows[counts]], step[counts])
    for collision in found:
        if collision.at_fault:
            seconds[collision.moment] = 0.0
    return seconds
