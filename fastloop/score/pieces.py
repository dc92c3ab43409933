"""The fixed list of pieces of a scoring run, and how one of them is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.config import PolicyConfig
from fastloop.datasets.benchmark import Benchmark
from fastloop.datasets.errors import DatasetError
from fastloop.policies.base import Policy
from fastloop.score.planner import Planner, env_spec
from fastloop.setup import load
from fastloop.sims.targets import build, find

__all__ = ["Job", "Piece", "Scored", "World", "load_planner", "open_benchmark"]


@dataclass(frozen=True)
class Job:
    """What every process of a run has to know.

    Attributes:
        dataset: how the benchmark is built.
        policy: whose plans are scored; None where the pieces bring plans along.
        batch, seed: as for `Planner`.
    """

    dataset: Mapping[str, Any]
    policy: PolicyConfig | None
    batch: int
    seed: int


@dataclass(frozen=True)
class Piece:
    """Some samples in a row.

    Attributes:
        index: of the piece.
        keys: N samples.
        plans: (N, T, 2) waypoints, nan where there is none, or None to ask the policy.
    """

    index: int
    keys: tuple[str, ...]
    plans: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Scored:
    """What became of a piece.

    Attributes:
        index: of the piece.
        plans: (N, T, 2) waypoints, nan where there is none.
        scored: (N,) which samples are rows of the columns.
        columns: the benchmark's, one row a scored sample.
        faults: by sample, why it is not scored.
    """

    index: int
    plans: NDArray[np.float64]
    scored: NDArray[np.bool_]
    columns: Mapping[str, NDArray[Any]]
    faults: Mapping[str, str]


class World:
    """What one process holds to do pieces: the benchmark and, where one is asked, the policy.

    Args:
        job: what is to be done.
        benchmark: the job's, where this process has opened it already.
    """

    def __init__(self, job: Job, benchmark: Benchmark | None = None) -> None:
        self.benchmark = open_benchmark(job.dataset) if benchmark is None else benchmark
        self.planner: Planner | None = None
        if job.policy is not None:
            # Sums round differently on other numbers of threads, so their number is fixed.
            torch.set_num_threads(job.policy.threads or 1)
            policy = load_planner(job.policy, self.benchmark)
            self.planner = Planner(policy, self.benchmark, batch=job.batch, seed=job.seed)

    def do(self, piece: Piece) -> Scored:
        """Plan where no plans are given, and score."""
        if piece.plans is not None:
            plans = piece.plans
            absent = np.isnan(plans).any(axis=(1, 2))
            faults = {
                piece.keys[row]: "there is no prediction for it" for row in np.nonzero(absent)[0]
            }
        else:
            assert self.planner is not None, "a piece without plans needs a policy"
            plans, faults = self.planner.plan(piece.keys)
        rows = [row for row, key in enumerate(piece.keys) if key not in faults]
        columns = self._score(piece.keys, plans, rows, faults)
        scored = np.array([key not in faults for key in piece.keys], dtype=bool)
        return Scored(piece.index, plans, scored, columns, faults)

    def _score(
        self,
        keys: Sequence[str],
        plans: NDArray[np.float64],
        rows: Sequence[int],
        faults: dict[str, str],
    ) -> dict[str, NDArray[Any]]:
        """The columns of `rows`; a sample that cannot be scored is left out and noted."""
        if not rows:
            return {}
        try:
            return self.benchmark.score([keys[row] for row in rows], plans[rows])
        except DatasetError as error:
            if len(rows) == 1:
                faults[keys[rows[0]]] = str(error)
                return {}
        parts = [self._score(keys, plans, [row], faults) for row in rows]
        return stack_columns([part for part in parts if part])


def stack_columns(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The columns of several pieces, one after the other."""
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )


def open_benchmark(
    dataset: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> Benchmark:
    """The configured benchmark.

    Args:
        dataset: its class and arguments.
        progress: told how much of how much is opened, where the benchmark tells it.

    Raises:
        ValueError: the configuration names something that is no benchmark.
        DatasetError: its data is missing or of another layout.
    """
    kind = find(dataset, "dataset")
    if not hasattr(kind, "score"):
        raise ValueError(
            f"dataset: {dataset['_target_']} holds demonstrations to train on, and nothing to "
            "score plans against; have: dataset=nuscenes, dataset=nuscenes_prediction, "
            "dataset=wod_e2e"
        )
    tells = progress is not None and "progress" in inspect.signature(kind).parameters
    benchmark: Benchmark = build(
        {**dataset, **({"progress": progress} if tells else {})}, "dataset"
    )
    return benchmark


def load_planner(config: PolicyConfig, benchmark: Benchmark) -> Policy:
    """The configured policy, built for the benchmark; raises like `load`."""
    return load(config, env_spec(benchmark), config.sampler)
