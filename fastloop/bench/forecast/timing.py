"""How long forecasts take, the arms taking turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.rng import Rng

__all__ = ["time_in_turns"]


def time_in_turns(
    arms: Mapping[str, Forecaster],
    test: Trajectories,
    *,
    agents: int,
    samples: int,
    repeats: int,
    advance: Callable[[int], None],
) -> dict[str, list[float]]:
    """Wall time of forecasts of `samples` futures for `agents` agents at once.

    A turn is of the same agents for every arm; each begins with another arm.

    Returns:
        arm to `repeats` + 1 milliseconds, the first one cold.
    """
    timed: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(repeats + 1):
        rows = [(turn * agents + k) % len(test) for k in range(agents)]
        past, rng = torch.from_numpy(test.past[rows]), Rng.for_envs(turn, rows, [0] * agents)
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            started = perf_counter()
            arms[name].forecast(past, samples, rng)  # on the host when it is there
            timed[name].append(1e3 * (perf_counter() - started))
        advance(turn)
    return timed
