"""A scoring run: its pieces done, found again after an interruption, and put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Benchmark, Metric
from fastloop.score.findings import Case, split_name
from fastloop.score.pieces import Job, Piece, Scored, stack_columns
from fastloop.score.store import PieceStore
from fastloop.score.workers import do_pieces

__all__ = ["Outcome", "digest", "divide", "do_run"]


@dataclass(frozen=True)
class Outcome:
    """Everything that was scored, in the benchmark's order.

    Attributes:
        keys: the scored samples (N).
        plans: (N, T, 2) theirs.
        columns: the benchmark's, N rows each.
        faults: by sample, why it was not scored.
    """

    keys: Sequence[str]
    plans: NDArray[np.float64]
    columns: Mapping[str, NDArray[Any]]
    faults: dict[str, str]

    @classmethod
    def of(cls, pieces: Sequence[Piece], done: Sequence[Scored]) -> Outcome:
        """Put finished pieces together."""
        order = sorted(done, key=lambda scored: scored.index)
        keys = [
            key
            for scored in order
            for key, there in zip(pieces[scored.index].keys, scored.scored, strict=True)
            if there
        ]
        return cls(
            keys,
            np.concatenate([scored.plans[scored.scored] for scored in order]),
            stack_columns([scored.columns for scored in order if scored.columns]),
            {key: why for scored in order for key, why in scored.faults.items()},
        )

    def metrics(self, benchmark: Benchmark) -> dict[str, Metric]:
        """The benchmark's figures; none where nothing was scored."""
        return benchmark.metrics(self.keys, self.columns) if self.keys else {}

    def worst(self, benchmark: Benchmark, count: int) -> list[Case]:
        """The worst samples, the worst first."""
        if not self.keys:
            return []
        rows = benchmark.worst(self.keys, self.columns)[:count]
        return [Case(self.keys[row], self.plans[row], self._figures(int(row))) for row in rows]

    def _figures(self, row: int) -> dict[str, float]:
        """What the columns hold of one sample; of figures over time, the one at the end."""
        found = {}
        for name, column in self.columns.items():
            value = np.asarray(column[row])
            if value.ndim == 0 and value.dtype.kind in "fbiu":
                stem, horizon = split_name(name)
                found[stem] = (f"{stem} {horizon}".strip(), float(value))
        return dict(found.values())


def divide(
    keys: Sequence[str], size: int, plans: Mapping[str, NDArray[np.float64]] | None, steps: int
) -> list[Piece]:
    """The samples in pieces of `size`, with the plans (T, 2) that are given for them."""
    pieces = []
    for index, start in enumerate(range(0, len(keys), size)):
        some = tuple(keys[start : start + size])
        rows = None
        if plans is not None:
            nothing = np.full((steps, 2), np.nan)
            rows = np.stack([plans.get(key, nothing) for key in some])
        pieces.append(Piece(index, some, rows))
    return pieces


def digest(settings: str, pieces: Sequence[Piece]) -> str:
    """Of all that decides a figure: the settings, the samples, and the plans that are given."""
    total = hashlib.sha256(settings.encode())
    for piece in pieces:
        total.update("\n".join(piece.keys).encode())
        total.update(b"" if piece.plans is None else piece.plans.tobytes())
    return total.hexdigest()[:16]


def do_run(
    job: Job,
    pieces: Sequence[Piece],
    folder: Path,
    settings: str,
    *,
    worker: str,
    workers: int,
    progress: Callable[[int], None],
    benchmark: Benchmark | None = None,
) -> list[Scored]:
    """Do what an earlier process of this run has not done, keeping every piece as it comes.

    Args:
        settings: digest of the configuration.
        worker, workers, benchmark: as for `do_pieces`.
        progress: called with the number of samples done so far.

    Raises:
        ValueError: the folder holds another run.
    """
    store = PieceStore(folder, digest(settings, pieces))
    done = {piece.index: store.load(piece.index, len(piece.keys)) for piece in pieces}
    found = {index: scored for index, scored in done.items() if scored is not None}
    count = sum(len(scored.scored) for scored in found.values())
    progress(count)
    left = [piece for piece in pieces if piece.index not in found]
    for scored in do_pieces(job, left, worker=worker, workers=workers, benchmark=benchmark):
        store.save(scored)
        found[scored.index] = scored
        count += len(scored.scored)
        progress(count)
    return list(found.values())
