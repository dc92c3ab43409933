"""What to compute and what to reuse, decided before the first chunk, as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.config import PredictorConfig
from fastloop.accel.samplers.base import Sampler, describe

__all__ = ["CachePlan", "Provenance"]

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """What a plan was made from.

    Attributes:
        algorithm: the `kind` of `AccelConfig`.
        budget, union, metric, force_last, budgets, objective, score, depth, boundary: as in
            `AccelConfig`; those that the kind does not use are left at nothing.
        digest: of the checkpoint; empty when it has none, and then it is not compared.
        sampler: the reverse process in words; compared likewise.
        observations: number of observations that were averaged, 0 for a fixed schedule.
        seeds: of the episodes that they came from, where known.
        stability: agreement (Jaccard) of the schedules of two halves of the observations, where
            there were two or more.
        refined: plans that were measured to improve this one, 0 for a plan as its kind makes it.
        error_before, error_after: action error on held-out observations that this changed.
    """

    algorithm: str
    budget: int
    union: int = 0
    metric: str = ""
    force_last: bool = False
    digest: str = ""
    sampler: str = ""
    observations: int = 0
    seeds: tuple[int, ...] = ()
    stability: float | None = None
    budgets: dict[str, int] = field(default_factory=dict)
    objective: str = ""
    score: str = ""
    depth: float | None = None
    boundary: float | None = None
    refined: int = 0
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True)
class CachePlan:
    """Static schedule of a block cache.

    Attributes:
        steps: K, network evaluations of one chunk.
        branches: of the network that it is for, in the order of execution.
        updates: for each branch the steps that compute it, rising from 0; the others reuse.
        provenance: what it was made from.
        predictor: what stands in for a branch that is reused.
    """

    steps: int
    branches: tuple[Branch, ...]
    updates: tuple[tuple[int, ...], ...]
    provenance: Provenance
    predictor: PredictorConfig = field(default_factory=PredictorConfig)

    def __post_init__(self) -> None:
        if len(self.updates) != len(self.branches):
            raise ValueError(
                f"a cache plan has one schedule a branch: got {len(self.updates)} schedules for "
                f"{len(self.branches)} branches"
            )
        for branch, updates in zip(self.branches, self.updates, strict=True):
            if not updates or updates[0] != 0:
                raise ValueError(f"the schedule of {branch.name} must start with step 0: {updates}")
            if list(updates) != sorted(set(updates)) or updates[-1] >= self.steps:
                raise ValueError(
                    f"the schedule of {branch.name} must rise within the {self.steps} denoise "
                    f"steps: {updates}"
                )

    def mask(self) -> npt.NDArray[np.bool_]:
        """(K, N) bool, true where branch n is computed at step k."""
        mask = np.zeros((self.steps, len(self.branches)), dtype=bool)
        for n, updates in enumerate(self.updates):
            mask[list(updates), n] = True
        return mask

    @property
    def computed(self) -> int:
        """Branches computed in one chunk."""
        return sum(len(updates) for updates in self.updates)

    @property
    def reused(self) -> int:
        """Branches taken from the cache in one chunk."""
        return self.steps * len(self.branches) - self.computed

    @property
    def reuse_fraction(self) -> float:
        """Share of branches taken from the cache, 0 to 1."""
        return self.reused / (self.steps * len(self.branches))

    def check(self, branches: Sequence[Branch], sampler: Sampler, digest: str = "") -> None:
        """Refuse a policy that the plan was not made for.

        Raises:
            ValueError: naming both sides, when step count, branches, checkpoint or sampler differ.
        """
        made = self.provenance
        sides = [
            ("denoise steps", self.steps, len(sampler.timesteps)),
            ("branches", *_first_difference(self.branches, branches)),
            ("checkpoint", made.digest or digest, digest or made.digest),
            ("sampler", made.sampler or describe(sampler), describe(sampler)),
        ]
        for what, ours, theirs in sides:
            if ours != theirs:
                raise ValueError(
                    f"the cache plan is for another policy: its {what} {ours!r}, the policy's "
                    f"{theirs!r}; calibrate a plan for this one"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        rows = [
            asdict(branch) | {"updates": updates}
            for branch, updates in zip(self.branches, self.updates, strict=True)
        ]
        content = {
            "schema": SCHEMA,
            "steps": self.steps,
            "provenance": asdict(self.provenance),
            "predictor": asdict(self.predictor),
            "branches": rows,
        }
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CachePlan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: the file is no cache plan, is cut short, or is of another version.
        """
        try:
            content = json.loads(Path(path).read_text())
            schema = content["schema"]
            if schema == SCHEMA:
                return cls._parse(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a cache plan, or was cut short ({type(error).__name__}: {error}); "
                "write it again with `fastloop calibrate`"
            ) from error
        raise ValueError(
            f"{path} is a cache plan of schema {schema!r}, this version reads {SCHEMA}; write it "
            "again with `fastloop calibrate`"
        )

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> CachePlan:
        rows = content["branches"]
        provenance = dict(content["provenance"])
        provenance["seeds"] = tuple(int(seed) for seed in provenance["seeds"])
        return cls(
            steps=int(content["steps"]),
            branches=tuple(
                Branch(str(row["name"]), int(row["layer"]), str(row["kind"])) for row in rows
            ),
            updates=tuple(tuple(int(step) for step in row["updates"]) for row in rows),
            provenance=Provenance(**provenance),
            predictor=PredictorConfig(**content["predictor"]),
        )


def _first_difference(ours: Sequence[Branch], theirs: Sequence[Branch]) -> tuple[Any, Any]:
    """The first branch that differs, or how many there are where one list is longer."""
    for mine, yours in zip(ours, theirs, strict=False):
        if mine != yours:
            return mine, yours
    return len(ours), len(theirs)
