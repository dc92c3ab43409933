"""What a forecaster would have said had it watched what came of its forecasts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.cacheflow.recalibration import Recalibration

__all__ = ["recalibrated"]


def recalibrated(
    said: NDArray[np.floating],
    happened: NDArray[np.bool_],
    moment: NDArray[np.int64],
    steps: int,
) -> NDArray[np.float64]:
    """Probabilities (n,) of an event, each corrected by `Recalibration` with the outcomes that were
    known when it was said, and with none from later.

    Args:
        said: (n,) in [0, 1], NaN of whom the event does not concern.
        happened: (n,).
        moment: (n,) when it was said, see `Trajectories.moment`.
        steps: T, after which an outcome is known. As many forecasts of one agent overlap, and count
            together as one.
    """
    corrected = np.full(len(said), np.nan)
    watched = Recalibration()
    concerned = np.flatnonzero(~np.isnan(said))
    concerned = concerned[np.argsort(moment[concerned], kind="stable")]
    times = moment[concerned]
    learned = 0
    for now in np.unique(times):
        known = int(np.searchsorted(times, now - steps, side="right"))
        if known > learned:
            rows = concerned[learned:known]
            watched.learn(said[rows], happened[rows], weight=1 / steps)
            learned = known
        rows = concerned[times == now]
        corrected[rows] = watched(said[rows])
    return corrected
