"""Recordings of pedestrians: who was where, in which frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError, OnFault, raise_fault

__all__ = ["Recording", "at_step", "read"]


@dataclass(frozen=True)
class Recording:
    """Annotations of one place, by frame and then pedestrian.

    Attributes:
        name: its file's, without suffix.
        step: frames from one annotation to the next.
        frames: (R,) int64.
        pedestrians: (R,) int64; each is in a frame once.
        positions: (R, 2) m, in the recording's own ground frame.
    """

    name: str
    step: int
    frames: NDArray[np.int64]
    pedestrians: NDArray[np.int64]
    positions: NDArray[np.float64]


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Recording:
    """Read a file of lines ``frame pedestrian x y``, separated by blanks or tabs.

    Args:
        path: the file.
        on_fault: told of a line that is malformed or repeats a pedestrian in a frame; it is left
            out.

    Raises:
        DatasetError: the file is missing, or holds no pedestrian who was seen twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    rows: dict[tuple[int, int], tuple[float, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            frame, pedestrian, x, y = map(float, line.split())
            if not (frame.is_integer() and pedestrian.is_integer() and math.isfinite(x + y)):
                raise ValueError("frames and pedestrians are whole numbers, positions finite")
            if max(abs(frame), abs(pedestrian)) > 2**53:
                raise ValueError("a frame or pedestrian of this number cannot be told from others")
            if (key := (int(frame), int(pedestrian))) in rows:
                raise ValueError("this pedestrian is in this frame already")
        except (ValueError, OverflowError) as error:
            text = line[:60].decode("ascii", "backslashreplace")
            on_fault(DatasetError(f"{path}, line {number}: {text!r}: {error}"))
            continue
        rows[key] = (x, y)
    keys = sorted(rows)
    frames, pedestrians = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    recording = Recording(
        path.stem, 0, frames, pedestrians, np.array([rows[key] for key in keys]).reshape(-1, 2)
    )
    gaps = _gaps(recording)
    if not len(gaps):
        raise DatasetError(f"{path} holds no pedestrian who was seen twice, in {len(keys)} rows")
    steps, counts = np.unique(gaps, return_counts=True)
    return replace(recording, step=int(steps[np.argmax(counts)]))


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


def _gaps(recording: Recording) -> NDArray[np.int64]:
    """Frames from one annotation of a pedestrian to the next."""
    order = np.lexsort((recording.frames, recording.pedestrians))
    same = np.diff(recording.pedestrians[order]) == 0
    return np.diff(recording.frames[order])[same]
