"""Pasts with the futures that followed them: what forecasting learns from and is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Trajectories", "TrajectoryData"]


@dataclass(frozen=True)
class Trajectories:
    """n of them, one agent each.

    Attributes:
        past: (n, P, F) m, the last of them the present; F numbers say where an agent is: x and y of
            a pedestrian in its agent frame, x, y, z of every joint of a body.
        future: (n, T, F) m in the same frame; never an input.
        groups: (n,) words: trajectories of one group (a pedestrian, a recording) overlap and tell
            little more than one of them, which intervals must know.
        situation: (n, S) m: two of them that lie close are the same situation, whose futures could
            each have followed (see `fastloop.datasets.scores.sampled.alike`).
        moment: (n,) when the present is, in points of time since the first recording began, one
            recording after another: of trajectories from `moment` + T on this future is known.
    """

    past: NDArray[np.float32]
    future: NDArray[np.float32]
    groups: NDArray[np.str_]
    situation: NDArray[np.float32]
    moment: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.past)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Trajectories:
        return Trajectories(*(column[rows] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """One after the other, also in time."""
        lasts = (part.moment.max(initial=0) + part.future.shape[1] for part in parts)
        later = [
            replace(part, moment=part.moment + begin)
            for part, begin in zip(parts, np.cumsum([0, *lasts]), strict=False)
        ]
        columns = zip(*(vars(part).values() for part in later), strict=True)
        return cls(*map(np.concatenate, columns))


@dataclass(frozen=True)
class TrajectoryData:
    """A data set's parts and what must be known to score on them.

    Attributes:
        name: of the data and of what is held out.
        train, val, test: no recording is in two of them, or its times are not.
        hz: points a second.
        same_situation: m, the distance in `Trajectories.situation` below which two are alike.
    """

    name: str
    train: Trajectories
    val: Trajectories
    test: Trajectories
    hz: float
    same_situation: float
