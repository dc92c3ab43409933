"""Walks that were annotated at one step, read at another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastloop.datasets.eth_ucy import Recording

__all__ = ["at_step"]


def at_step(recording: Recording, step: int) -> Recording:
    """Where everybody was at every `step`th frame from the first on, on straight lines between
    annotations.

    Nobody is anywhere before his first annotation, behind his last, or in a gap of them.

    Args:
        recording: at its own step.
        step: frames from one position to the next.

    Raises:
        ValueError: `step` is less than 1.
    """
    if step < 1:
        raise ValueError(f"a step has at least one frame, got {step}")
    order = np.lexsort((recording.frames, recording.pedestrians))
    frames, pedestrians = recording.frames[order], recording.pedestrians[order]
    broken = (np.diff(pedestrians) != 0) | (np.diff(frames) != recording.step)
    walks = np.split(np.arange(len(frames)), np.flatnonzero(broken) + 1)
    first, found = frames.min(), []
    for walk in walks:
        known, positions = frames[walk], recording.positions[order[walk]]
        times = np.arange(first - (first - known[0]) // step * step, known[-1] + 1, step)
        there = [np.interp(times, known, along) for along in positions.T]
        found.append(np.stack([times, np.full(len(times), pedestrians[walk[0]]), *there], 1))
    rows = np.concatenate(found)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return replace(
        recording,
        step=step,
        frames=rows[:, 0].astype(np.int64),
        pedestrians=rows[:, 1].astype(np.int64),
        positions=rows[:, 2:],
    )
