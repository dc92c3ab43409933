"""Pedestrians of ETH and UCY, as forecasting learns from them: 3.2 s of past, 4.8 s of future.

Five scenes (eth, hotel, univ, zara1, zara2); a model is tested on one and trains on the others. The
files are those of Social GAN's release (Gupta et al., CVPR 2018), which nearly everyone uses: lines
of ``frame pedestrian x y``, in m, every 10 frames, which are taken to be 0.4 s.

Conventions that comparable figures keep, and where they go wrong:

- Each recording's first 80 % of annotated frames train and the rest validates, in the four scenes
  that are not tested; the tested scene is tested whole. ``crowds_zara03`` and ``uni_examples``
  are of no test scene and always train, the latter although it shows the place of univ.
- univ is tested on students001 and students003 together, two thirds of all test trajectories: the
  usual mean over the five scenes is no mean over trajectories.
- ``biwi_eth`` was annotated every 6 frames (0.4 s) and interpolated to every 10, so that its step
  is some 0.67 s: people there seem to walk at 2.5 m/s, and its errors are as much too large. Files
  with the step of 6 exist (SR-LSTM, Zhang et al., 2019) and give smaller errors; they are read
  alike, but are another benchmark. So is ``eth_step=6``, which reads the usual file at 0.4 s.
- Frames in which nobody walks are missing. A window is by time, and never leads over a gap.
- Social GAN leaves out windows with a single complete pedestrian (`min_pedestrians` = 2), others do
  not (1): 181 or 364 trajectories of eth.
- What is known now decides what a model sees: positions relative to a pedestrian's present one, and
  scales from the training scenes. Centering on a window's mean tells where it ends. Neighbours here
  are those seen in the past, whether or not they stay, which nobody knows.
- FlowChain's code divides the errors of eth by 0.6; they are in m here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.agent_frame import AgentFrame
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.pedestrians import Recording, at_step, read
from fastloop.datasets.trajectories import Trajectories, TrajectoryData

__all__ = [
    "HZ",
    "SCENES",
    "TRAINING_ONLY",
    "Window",
    "split",
    "trajectories",
    "windows",
]

HZ = 2.5
SCENES = {
    "eth": ("biwi_eth",),
    "hotel": ("biwi_hotel",),
    "univ": ("students001", "students003"),
    "zara1": ("crowds_zara01",),
    "zara2": ("crowds_zara02",),
}
"""The recordings that each scene is tested on."""
TRAINING_ONLY = ("crowds_zara03", "uni_examples")
SAME_SITUATION = 0.1  # m, between two pasts in the agent frame, in the root mean square over time


@dataclass(frozen=True)
class Window:
    """The pedestrians around one moment.

    Attributes:
        recording: name of the recording.
        frame: the present one, the last of the past.
        pedestrians: (n,) ids of all who were seen in the past part, ascending.
        past: (n, P, 2) m, nan where a pedestrian was not there.
        future: (n, F, 2) m, nan likewise; never an input.
        complete: (n,) who is there at all P + F times: these are forecast and scored.
    """

    recording: str
    frame: int
    pedestrians: NDArray[np.int64]
    past: NDArray[np.float64]
    future: NDArray[np.float64]
    complete: NDArray[np.bool_]


@os_errors_are_faults()
def split(
    root: str | Path,
    scene: str,
    part: str,
    *,
    eth_step: int | None = None,
    on_fault: OnFault = raise_fault,
) -> list[Recording]:
    """The recordings of one part of the leave-one-out benchmark.

    Args:
        root: a folder of whole recordings (``biwi_eth.txt``, ...), or of Social GAN's release
            (``eth/test/biwi_eth.txt``, ``eth/train/crowds_zara03_train.txt``, ...), whose parts are
            the same. Those of `TRAINING_ONLY` are used where they are there.
        scene: the tested one of `SCENES`.
        part: ``train``, ``val`` or ``test``.
        eth_step: frames of ``biwi_eth`` that are 0.4 s, between whose annotations positions are
            then interpolated: 6, as it was recorded; None for those of its file, as is usual.
        on_fault: told of lines that cannot be read, see `read`.

    Raises:
        ValueError: `eth_step` is less than 1.
        DatasetError: a recording of the five scenes is missing, or a name is unknown.
    """
    if scene not in SCENES:
        raise DatasetError(f"unknown scene {scene!r}; have: {', '.join(SCENES)}")
    if part not in ("train", "val", "test"):
        raise DatasetError(f"unknown part {part!r}; have: train, val, test")
    root = Path(root)
    tested = SCENES[scene]
    if part == "test":
        return [_whole(root, name, eth_step, on_fault) for name in tested]
    names = [name for other in SCENES.values() for name in other if name not in tested]
    names += [name for name in TRAINING_ONLY if _files(root, name)]
    return [_share(_whole(root, name, eth_step, on_fault), part) for name in names]


def windows(
    recording: Recording, *, past: int = 8, future: int = 12, min_pedestrians: int = 1
) -> Iterator[Window]:
    """Every window of `past` + `future` successive times in which someone is complete, in order.

    Args:
        recording: from `split` or `read`.
        past: P, the present included.
        future: F.
        min_pedestrians: complete ones that a window must have; 2 is Social GAN's convention.

    Raises:
        ValueError: `past` or `future` is less than 1.
    """
    _check(past, future)
    length = past + future
    begins: dict[int, list[int]] = {}
    order = np.lexsort((recording.frames, recording.pedestrians))
    for row in order[_begins(recording, order, length)]:
        begins.setdefault(int(recording.frames[row]), []).append(int(recording.pedestrians[row]))

    for begin in sorted(begins):
        if len(begins[begin]) < min_pedestrians:
            continue
        times = begin + recording.step * np.arange(length)
        first = np.searchsorted(recording.frames, times, side="left")
        last = np.searchsorted(recording.frames, times, side="right")
        seen = np.concatenate(
            [recording.pedestrians[a:b] for a, b in zip(first[:past], last[:past], strict=True)]
        )
        ids = np.unique(seen)
        positions = np.full((len(ids), length, 2), np.nan)
        for k, (a, b) in enumerate(zip(first, last, strict=True)):
            known = np.isin(recording.pedestrians[a:b], ids)
            there = np.searchsorted(ids, recording.pedestrians[a:b][known])
            positions[there, k] = recording.positions[a:b][known]
        yield Window(
            recording.name, int(times[past - 1]), ids, positions[:, :past], positions[:, past:],
            np.isin(ids, begins[begin]),
        )  # fmt: skip


def trajectories(
    path: str | Path,
    scene: str,
    *,
    past: int = 8,
    future: int = 12,
    min_pedestrians: int = 1,
    eth_step: int | None = None,
) -> TrajectoryData:
    """Every complete trajectory of the benchmark, in its pedestrian's `AgentFrame`.

    Two situations are the same where the pasts are, seen from the pedestrian.

    Args:
        path: the root, as `split` takes it.
        scene: the held-out one of `SCENES`.
        past: P, the present included.
        future: T.
        min_pedestrians: as `windows` takes it.
        eth_step: as `split` takes it.

    Raises:
        DatasetError: as `split`, or a part has no trajectory of this length.
        ValueError: `past`, `future` or `eth_step` is less than 1.
    """
    _check(past, future)
    parts = {}
    for part in ("train", "val", "test"):
        found = [
            _complete(recording, past, past + future, min_pedestrians)
            for recording in split(path, scene, part, eth_step=eth_step)
        ]
        parts[part] = Trajectories.joined(found)
        if not len(parts[part]):
            raise DatasetError(
                f"{path} holds no trajectory of {past} + {future} times for {part} of {scene}"
            )
    return TrajectoryData(f"ETH/UCY, {scene} held out", **parts, hz=HZ,
                          same_situation=SAME_SITUATION)  # fmt: skip


def _check(past: int, future: int) -> None:
    if min(past, future) < 1:
        raise ValueError(f"past is {past} and future is {future}, expected 1 or more of each")


def _complete(recording: Recording, past: int, length: int, least: int) -> Trajectories:
    """Those who are complete in `windows`, in its order, each in a frame of its own."""
    order = np.lexsort((recording.frames, recording.pedestrians))
    rows = _begins(recording, order, length)
    rows = rows[np.lexsort((recording.pedestrians[order[rows]], recording.frames[order[rows]]))]
    _, window, people = np.unique(
        recording.frames[order[rows]], return_inverse=True, return_counts=True
    )
    rows = rows[people[window] >= least]
    positions = recording.positions[order[rows[:, None] + np.arange(length)]]
    frame = AgentFrame.of(positions[:, :past])
    seen = frame.seen(positions).astype(np.float32)
    return Trajectories(
        seen[:, :past],
        seen[:, past:],
        np.array([f"{recording.name}/{it}" for it in recording.pedestrians[order[rows]]], str),
        seen[:, :past].reshape(len(seen), 2 * past) / math.sqrt(past),
        (recording.frames[order[rows]] - recording.frames.min()) // recording.step + past - 1,
    )


def _begins(recording: Recording, order: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Places in `order`, by pedestrian and then frame, from which on somebody is there `length`
    times in a row."""
    frames, pedestrians = recording.frames[order], recording.pedestrians[order]
    breaks = np.flatnonzero((np.diff(pedestrians) != 0) | (np.diff(frames) != recording.step)) + 1
    ends = np.append(breaks, len(order))
    end = np.repeat(ends, np.diff(ends, prepend=0))  # of the run that a place is in
    return np.flatnonzero(np.arange(len(order)) + length <= end)


def _files(root: Path, name: str) -> list[Path]:
    """Where a recording is: one whole file, or a part to train and one to validate."""
    whole = [root / f"{name}.txt", *sorted(root.glob(f"*/test/{name}.txt"))]
    if there := [path for path in whole if path.is_file()]:
        return there[:1]
    parts = [sorted(root.glob(f"*/{part}/{name}_{part}.txt"))[:1] for part in ("train", "val")]
    return parts[0] + parts[1] if all(parts) else []


def _whole(root: Path, name: str, eth_step: int | None, on_fault: OnFault) -> Recording:
    pieces = [read(path, on_fault=on_fault) for path in _files(root, name)]
    if not pieces:
        raise DatasetError(
            f"{root} lacks {name}.txt; the benchmark is of "
            f"{', '.join(f'{it}.txt' for names in SCENES.values() for it in names)}"
        )
    whole = Recording(
        name,
        pieces[0].step,
        np.concatenate([piece.frames for piece in pieces]),
        np.concatenate([piece.pedestrians for piece in pieces]),
        np.concatenate([piece.positions for piece in pieces]),
    )
    return at_step(whole, eth_step) if eth_step is not None and name in SCENES["eth"] else whole


def _share(recording: Recording, part: str) -> Recording:
    """The annotations before or after 80 % of the frames that have any."""
    frames = np.unique(recording.frames)
    border = frames[len(frames) * 4 // 5]
    rows = (recording.frames < border) == (part == "train")
    return replace(
        recording,
        frames=recording.frames[rows],
        pedestrians=recording.pedestrians[rows],
        positions=recording.positions[rows],
    )
