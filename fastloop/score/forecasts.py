"""Forecasts of other agents from a file, scored as the nuScenes prediction challenge does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.prediction import NuScenesPrediction, read_forecasts
from fastloop.score.findings import Coverage, ScoreFindings
from fastloop.sims.targets import build

__all__ = ["score_forecasts"]

AT_ONCE = 64


def score_forecasts(
    path: str, dataset: Mapping[str, Any], progress: Callable[[int, int], None]
) -> ScoreFindings:
    """Score the submission at `path`.

    Args:
        path: of the challenge's JSON.
        dataset: how a `NuScenesPrediction` is built.
        progress: told how many of how many agents are done.

    Raises:
        DatasetError: the file or the data set cannot be read at all.
    """
    faults: list[str] = []

    def note(fault: DatasetError) -> None:
        faults.append(str(fault))

    challenge: NuScenesPrediction = build({**dataset, "on_fault": note}, "dataset")
    forecasts = read_forecasts(path, on_fault=note)
    parts = []
    for start in range(0, len(challenge.keys), AT_ONCE):
        some = challenge.keys[start : start + AT_ONCE]
        parts.append(challenge.score(some, forecasts))
        progress(start + len(some), len(challenge.keys))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    missing = [key for key in challenge.keys if key not in forecasts]
    scored = int(np.isfinite(next(iter(columns.values()))).sum())
    known = set(challenge.keys)
    return ScoreFindings(
        Path(path).name,
        challenge.name,
        challenge.metrics(challenge.keys, columns),
        challenge.conditions,
        Coverage(
            len(challenge.keys),
            scored,
            dict.fromkeys(missing, "there is no forecast for it"),
            faults,
            [key for key in forecasts if key not in known],
        ),
    )
