"""A challenge submission from what was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.config import SubmissionConfig
from fastloop.datasets.waymo import submission

__all__ = ["write_submission"]


def write_submission(
    path: Path, plans: Mapping[str, NDArray[np.float64]], config: SubmissionConfig
) -> Path:
    """Write a WOD-E2E submission of `plans` (20, 2) by frame name; raises as `submission.write`."""
    facts = dataclasses.asdict(config)
    frames = facts.pop("frames")
    expected = submission.read_frames(frames) if frames else None
    return submission.write(path, plans, frames=expected, **facts)
