"""What the plans of one drive are worth, each in the moment in which it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.driving.whole_plans import plan_rate
from fastloop.policies.spec import ActionSpec
from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.pdm import HORIZON_S, PlanScore, score_plan
from fastloop.sims.driving.scene import Moment, Surroundings
from fastloop.sims.metadrive.vehicle import (
    MAX_ACCEL,
    MAX_BRAKE,
    MAX_STEER_DEG,
    REAR_AXLE,
    TICK_S,
    WHEELBASE,
)

__all__ = ["Future", "PlanScores"]

PAST = 15  # ticks, of what history comfort sees
BICYCLE = Bicycle(WHEELBASE, math.radians(MAX_STEER_DEG), MAX_ACCEL, MAX_BRAKE)


class Future(NamedTuple):
    """What comes after a moment, whatever the vehicle does.

    Attributes:
        moments: at 10 Hz, the present first.
        expected_m: progress that the recorded driver makes meanwhile, None where nobody knows.
    """

    moments: Sequence[Moment]
    expected_m: float | None = None


class PlanScores:
    """NAVSIM's sub-scores (`score_plan`) of all plans of one drive.

    A plan is scored once, when it is first followed, as of the moment in which it was made: a late
    one is worth what it was worth then. One that goes on beyond the end of the route, where the
    episode will end, is judged there as anywhere else.

    Args:
        surroundings: where it drives.
        action: of `plan_action`.
        future: that of a tick, so many ticks of it, or None where it is not known: plans that
            reach beyond it are not scored.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        action: ActionSpec,
        future: Callable[[int, int], Future | None],
    ) -> None:
        waypoints, self.hz = plan_rate(action)
        self.steps = round(min(HORIZON_S, waypoints / self.hz) / TICK_S)
        self.surroundings = surroundings
        self.future = future
        self.scores: list[PlanScore] = []
        self._made = -1

    def follow(self, action: NDArray[np.float64], moments: Sequence[Moment]) -> None:
        """A tick's action is about to be followed.

        Args:
            action: (1 + 2T,) the plan's age and its waypoints.
            moments: of the drive, the present last.
        """
        made = max(0, len(moments) - 1 - round(float(action[0]) / TICK_S))
        if made == self._made:
            return
        self._made = made
        if (future := self.future(made, self.steps)) is not None:
            self.scores.append(
                score_plan(
                    action[1:].reshape(-1, 2),
                    hz=self.hz,
                    surroundings=self.surroundings,
                    future=future.moments,
                    past=[moment.ego for moment in moments[max(0, made - PAST) : made]],
                    expected_m=future.expected_m,
                    bicycle=BICYCLE,
                    rear_axle=REAR_AXLE,
                )
            )

    def figures(self) -> dict[str, float]:
        """``plans_scored``, and means over these of ``plan_pdms``, ``plan_epdms`` and the fields of
        `PlanScore`, as ``plan_<field>``."""
        names = ("pdms", "epdms", *(field.name for field in fields(PlanScore)))
        means = {
            f"plan_{name}": float(np.mean([getattr(score, name) for score in self.scores]))
            for name in names
            if self.scores
        }
        return {"plans_scored": float(len(self.scores)), **means}
