"""Who a vehicle collided with, how, and whose fault it was, as nuPlan tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.motion import Motion, Traffic, meeting

__all__ = ["STOPPED", "VULNERABLE", "Collision", "angles_from", "collisions", "no_fault_score"]

VULNERABLE = ("pedestrian", "cyclist")
STOPPED = 0.05  # m/s
BEHIND = np.deg2rad(150)


@dataclass(frozen=True)
class Collision:
    """The first touch of one road user.

    Attributes:
        moment: index of the moment.
        who, kind: of the other.
        how: ``stopped_ego``, ``stopped_other``, ``rear``, ``front`` or ``lateral``.
        at_fault: whether the ego could have prevented it: it hit what stood, or hit with its front,
            or touched sidewise while it was not within one lane of the road.
    """

    moment: int
    who: str
    kind: str
    how: str
    at_fault: bool


def angles_from(ego: Motion, others: Motion) -> NDArray[np.float64]:
    """(N,) rad from the ego's heading to the others' middles, seen from its rear axle, in [0, pi].

    Args:
        ego: N rows, one beside each of the others.
    """
    toward = others.center - ego.rear_axle
    forward, left = (toward * ego.along).sum(1), (toward * ego.aside).sum(1)
    angles: NDArray[np.float64] = np.abs(np.arctan2(left, forward))
    return angles


def collisions(
    ego: Motion, traffic: Traffic, within_one_lane: NDArray[np.bool_]
) -> tuple[Collision, ...]:
    """All collisions of a drive, in their order; each road user collides once.

    Args:
        ego: at T moments.
        traffic: the others at these.
        within_one_lane: (T,) whether the ego was on the road and within one lane.
    """
    begins, ceases = meeting(ego[traffic.moment], traffic.motion)
    touching = np.flatnonzero((begins <= 0) & (ceases >= 0))
    _, first = np.unique(traffic.who[touching], return_index=True)
    rows = np.sort(touching[first])
    mine, others = ego[traffic.moment[rows]], traffic.motion[rows]
    begins, ceases = meeting(mine.front, others)
    by_front = (begins <= 0) & (ceases >= 0)
    behind = angles_from(mine, others) > BEHIND
    found = []
    for index, row in enumerate(rows):
        moment, kind = int(traffic.moment[row]), traffic.kinds[traffic.who[row]]
        if mine.speed[index] <= STOPPED:
            how = "stopped_ego"
        elif kind not in ("vehicle", *VULNERABLE) or others.speed[index] <= STOPPED:
            how = "stopped_other"
        elif behind[index]:
            how = "rear"
        else:
            how = "front" if by_front[index] else "lateral"
        fault = how in ("stopped_other", "front") or (
            how == "lateral" and not within_one_lane[moment]
        )
        found.append(Collision(moment, traffic.ids[traffic.who[row]], kind, how, fault))
    return tuple(found)


def no_fault_score(found: Sequence[Collision]) -> float:
    """1 without a collision at fault, 0.5 with one with an object, 0 with any other or more."""
    kinds = [collision.kind for collision in found if collision.at_fault]
    objects = sum(kind not in ("vehicle", *VULNERABLE) for kind in kinds)
    return 0.0 if objects < len(kinds) else max(0.0, 1 - objects / 2)
