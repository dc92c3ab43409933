"""Human motion of Human3.6M and AMASS, as BeLFusion (Barquero et al., ICCV 2023) prepares it.

Neither may be passed on; these are the files that its scripts leave:

- Human3.6M: ``data_3d_h36m.npz``, VideoPose3D's: subject to action to positions (n, 32, 3) m at
  50 Hz. Of the 32 joints 17 remain; 0.5 s of past, 2 s of future; five subjects train, S9 and S11
  test.
- AMASS: a folder a data set of ``poses.zarr`` (n, 22, 3) m at 60 Hz, one recording after the other,
  and ``poses_index.zarr`` (recordings, 2), where each begins and ends. Data sets are held out.

Joints are relative to the pelvis, which is left out: where somebody walks is not forecast, nor is
the heading taken away. What is tested is a list of moments (``segments_test.csv``) in published
tables; without it, every `stride`-th is. BeLFusion takes every tenth of all its windows in a row,
so that the grid of a recording depends on the ones before, and misses the last window of each.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import pickles, zarr_v2
from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.datasets.trajectories import Trajectories, TrajectoryData

__all__ = ["AMASS_TEST", "AMASS_TRAIN", "AMASS_VAL", "amass", "h36m"]

KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)  # of Human3.6M's 32
LARGEST = 1 << 30  # bytes of Human3.6M's positions, unpacked

H36M_TRAIN, H36M_TEST = ("S1", "S5", "S6", "S7", "S8"), ("S9", "S11")
AMASS_TRAIN = (
    "ACCAD", "BMLhandball", "BMLmovi", "BMLrub", "CMU", "EKUT", "EyesJapanDataset", "KIT",
    "PosePrior", "TCDHands", "TotalCapture",
)  # fmt: skip
AMASS_VAL = ("HumanEva", "HDM05", "SFU", "MoSh")
AMASS_TEST = ("DFaust", "DanceDB", "GRAB", "HUMAN4D", "SOMA", "SSM", "Transitions")

Poses = NDArray[np.float32]
Recordings = Mapping[tuple[str, str], Poses]
"""Who and what (a subject's action, a data set's number) to poses (n, J, 3) m."""


@os_errors_are_faults()
def h36m(
    path: str | Path,
    *,
    past: int = 25,
    future: int = 100,
    stride: int = 10,
    segments: str | Path | None = None,
) -> TrajectoryData:
    """Human3.6M: 16 joints, F = 48, in the published split, which validates on nobody.

    Args:
        path: ``data_3d_h36m.npz``.
        past, future: P and T, at 50 Hz.
        stride: frames from one window to the next.
        segments: list of what is tested: columns ``subject``, ``action`` and ``pred_init``.

    Raises:
        DatasetError: a file is missing, damaged or of another layout, or a subject is not there.
        ValueError: a number is less than 1.
    """
    path = Path(path)
    found = _subjects(path)
    if missing := [who for who in (*H36M_TRAIN, *H36M_TEST) if who not in found]:
        raise DatasetError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(found)}")

    def of(subjects: Sequence[str]) -> Recordings:
        return {
            (who, action): _body(poses, f"{path}, {who}, {action}")
            for who in subjects
            for action, poses in found[who].items()
        }

    cut = _Cut(past, future, stride)
    listed = _listed(segments, ("subject", "action")) if segments else None
    test = cut.listed(of(H36M_TEST), listed, segments) if listed else cut.all(of(H36M_TEST))
    return TrajectoryData("Human3.6M", cut.all(of(H36M_TRAIN)), cut.all({}), test, 50.0, 0.5)


@os_errors_are_faults()
def amass(
    path: str | Path,
    *,
    past: int = 30,
    future: int = 120,
    stride: int = 10,
    segments: str | Path | None = None,
    train: Sequence[str] = AMASS_TRAIN,
    val: Sequence[str] = AMASS_VAL,
    test: Sequence[str] = AMASS_TEST,
) -> TrajectoryData:
    """AMASS: 21 joints, F = 63, whole data sets held out.

    Args:
        path: the folder of data sets.
        past, future: P and T, at 60 Hz.
        stride: frames from one window to the next.
        segments: list of what is tested: columns ``dataset``, ``file_idx`` and ``pred_init``.
        train, val, test: names of data sets; fewer of them are another benchmark.

    Raises:
        DatasetError: a file is missing, damaged or of another layout.
        ValueError: a number is less than 1, or a data set is to train and to test.
    """
    if twice := {name for name in train if name in (*val, *test)} | (set(val) & set(test)):
        raise ValueError(f"{', '.join(sorted(twice))} cannot be in two parts")

    def of(names: Sequence[str]) -> Recordings:
        return {key: it for name in names for key, it in _data_set(Path(path), name)}

    cut = _Cut(past, future, stride)
    listed = _listed(segments, ("dataset", "file_idx")) if segments else None
    tested = cut.listed(of(test), listed, segments) if listed else cut.all(of(test))
    return TrajectoryData("AMASS", cut.all(of(train)), cut.all(of(val)), tested, 60.0, 0.4)


class _Cut:
    """Cuts recordings into pasts and futures."""

    def __init__(self, past: int, future: int, stride: int) -> None:
        if min(past, future, stride) < 1:
            raise ValueError(
                f"past is {past}, future {future}, stride {stride}; expected 1 or more of each"
            )
        self.past, self.length, self.stride = past, past + future, stride

    def all(self, recordings: Recordings) -> Trajectories:
        """Every window that begins at a multiple of the stride."""
        return self._cut(
            recordings,
            [
                (key, start)
                for key, poses in recordings.items()
                for start in range(0, len(poses) - self.length + 1, self.stride)
            ],
        )

    def listed(
        self,
        recordings: Recordings,
        moments: Sequence[tuple[tuple[str, str], int]],
        where: str | Path | None,
    ) -> Trajectories:
        """The windows whose futures begin at `moments`, which `where` says."""
        for key, moment in moments:
            there = key in recordings and (
                0 <= moment - self.past <= len(recordings[key]) - self.length
            )
            if not there:
                raise DatasetError(
                    f"{where} asks for a future from frame {moment} of {' '.join(key)}, of which "
                    f"{len(recordings.get(key, ()))} frames are there"
                )
        return self._cut(recordings, [(key, moment - self.past) for key, moment in moments])

    def _cut(
        self, recordings: Recordings, starts: Sequence[tuple[tuple[str, str], int]]
    ) -> Trajectories:
        width = next(iter(recordings.values())).shape[1] * 3 if recordings else 0
        whole = np.empty((len(starts), self.length, width), np.float32)
        for row, (key, start) in enumerate(starts):
            whole[row] = recordings[key][start : start + self.length].reshape(self.length, width)
        past, future = whole[:, : self.past], whole[:, self.past :]
        lengths = map(len, recordings.values())
        begins = dict(zip(recordings, np.cumsum([0, *lengths]), strict=False))
        return Trajectories(
            past, future, np.array(["/".join(key) for key, _ in starts], str), past[:, -1],
            np.array([begins[key] + start + self.past - 1 for key, start in starts], np.int64),
        )  # fmt: skip


def _subjects(path: Path) -> dict[str, dict[str, Any]]:
    """What VideoPose3D's file holds: subject to action to an array."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("positions_3d.npy") as member:
            data = member.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"its positions take more than {LARGEST} bytes")
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0,
                   (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
        readers[version](stream)
        found = pickles.loads(data[stream.tell() :], boxed=True)
    except (
        AttributeError, EOFError, LookupError, NotImplementedError, RuntimeError, SyntaxError,
        TypeError, ValueError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DatasetError(f"{path} is no data_3d_h36m.npz of VideoPose3D ({error})") from error
    nested = isinstance(found, dict) and all(isinstance(it, dict) for it in found.values())
    if not nested:
        raise DatasetError(f"{path}: positions_3d is no dict of subjects of dicts of actions")
    return found


def _body(poses: Any, where: str) -> Poses:
    """The 16 joints about the pelvis of Human3.6M's 32, or 17."""
    shape = getattr(poses, "shape", ())
    if len(shape) != 3 or shape[1] not in (32, 17) or shape[2] != 3 or poses.dtype.kind != "f":
        raise DatasetError(f"{where}: shape {shape}, expected numbers (n, 32, 3)")
    return _relative(poses[:, KEPT] if shape[1] == 32 else poses, where)


def _relative(poses: NDArray[Any], where: str) -> Poses:
    """(n, J - 1, 3) of (n, J, 3): joints about the first, which goes."""
    if not np.isfinite(poses).all():
        raise DatasetError(f"{where} holds nan or inf")
    return (poses[:, 1:] - poses[:, :1]).astype(np.float32)


def _data_set(path: Path, name: str) -> Iterator[tuple[tuple[str, str], Poses]]:
    """The recordings of one of AMASS's data sets."""
    group = path / name
    poses, index = (zarr_v2.open_array(group / f"{it}.zarr") for it in ("poses", "poses_index"))
    if poses.shape[1:] != (22, 3) or index.shape[1:] != (2,):
        raise DatasetError(
            f"{group}: poses of shape {poses.shape} and an index of shape {index.shape}, expected "
            "(n, 22, 3) and (recordings, 2)"
        )
    for number, (start, end) in enumerate(index[:].tolist()):
        if not 0 <= start <= end <= len(poses):
            raise DatasetError(
                f"{group}: recording {number} is said to go from {start} to {end} of {len(poses)}"
            )
        yield (name, str(number)), _relative(poses[start:end], f"{group}, recording {number}")


def _listed(path: str | Path, names: tuple[str, str]) -> list[tuple[tuple[str, str], int]]:
    """The moments of a list: whose, and the first frame of the future."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = [((row[names[0]], row[names[1]]), int(row["pred_init"])) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{path} is no list with the columns {', '.join(names)}, pred_init ({error!r})"
        ) from error
    if not found:
        raise DatasetError(f"{path} lists nothing to test")
    return found
