"""A challenge submission from what was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.config import SubmissionConfig
from fastloop.datasets.waymo import submission

__all__ = ["check_submission", "write_submission"]


def check_submission(config: SubmissionConfig) -> None:
    """Refuse, before anything is planned, what could not be handed in afterwards.

    Raises:
        DatasetError: what the challenge requires is missing or malformed.
    """
    submission.check_metadata(_metadata(config))
    if config.frames:
        submission.read_frames(config.frames)


def write_submission(
    path: Path, plans: Mapping[str, NDArray[np.float64]], config: SubmissionConfig
) -> Path:
    """Write a WOD-E2E submission of `plans` (20, 2) by frame name; raises as `submission.write`."""
    frames = submission.read_frames(config.frames) if config.frames else None
    if frames is not None:
        wanted = set(frames)
        plans = {name: plan for name, plan in plans.items() if name in wanted}
    return submission.write(path, plans, frames=frames, **_metadata(config))


def _metadata(config: SubmissionConfig) -> dict[str, object]:
    facts = dataclasses.asdict(config)
    del facts["frames"]
    return facts
