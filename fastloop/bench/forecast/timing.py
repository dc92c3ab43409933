"""How long forecasts take, the arms taking turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

from fastloop.accel.flow_table import queries
from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.table import FlowTable
from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.rng import Rng

__all__ = ["QUERIES", "time_in_turns", "time_queries"]

FUTURES, COMPONENTS, DIMS, DRAWN = 4096, 50, 8, 50
QUERIES = {
    "density": f"density of {FUTURES} futures, M = {COMPONENTS}",
    "draw": f"{DRAWN} samples of them",
}


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

    A turn is of the same agents for every arm; each begins with another arm. Every arm forecasts
    twice in a turn: cold, when others have had the processor and its caches, and warm, right after.

    Returns:
        arm to `repeats` pairs of milliseconds, cold and warm, one pair after the other; a turn
        before them is not counted.
    """
    timed: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(repeats + 1):
        rows = [(turn * agents + k) % len(test) for k in range(agents)]
        past, rng = torch.from_numpy(test.past[rows]), Rng.for_envs(turn, rows, [0] * agents)
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            for _ in range(2):
                started = perf_counter()
                arms[name].forecast(past, samples, rng)  # on the host when it is there
                timed[name].append(1e3 * (perf_counter() - started))
        advance(turn)
    return {name: ms[2:] for name, ms in timed.items()}


@torch.inference_mode()
def time_queries(repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Wall time of what a table is asked for one agent, with random numbers in the sizes that
    `QUERIES` tells.

    Returns:
        name of `QUERIES` to `repeats` + 1 milliseconds, the first one cold.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device)

    K = FUTURES
    table = FlowTable.of(normal(K, DIMS), normal(K), normal(K), normal(K, 12, 2))
    means, spread = normal(1, COMPONENTS, DIMS), normal(1, COMPONENTS, DIMS)
    mixture = Mixture(normal(1, COMPONENTS).log_softmax(-1), means, 0.05 + spread.square())
    asked: dict[str, Callable[[], torch.Tensor]] = {
        "density": lambda: queries.log_density(table, mixture, least_weight=0).cpu(),
        "draw": lambda: queries.draw(table, mixture, queries.seeded_noise([0], DRAWN, DIMS)).cpu(),
    }
    timed: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(repeats + 1):
        for name, ask in asked.items():
            started = perf_counter()
            ask()
            timed[name].append(1e3 * (perf_counter() - started))
    return timed
