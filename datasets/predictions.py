"""Files of planned trajectories by sample, in any layout, as one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets import numpy_files, pickles
from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.datasets.nuscenes.poses import lidar_to_vehicle
from fastloop.datasets.waymo import submission

__all__ = ["FRAMES", "Predictions", "check_heading", "read", "write"]

FRAMES = ("vehicle", "lidar")
"""Axes: ``vehicle`` x forward and y left, ``lidar`` (of nuScenes' LIDAR_TOP) x right, y forward."""

LAYOUTS = (
    ".json, .npz, .pkl, or a WOD-E2E submission (.tar.gz, .tar, a folder of parts, a part "
    "without suffix)"
)
MOVING = 2.0  # m: who ends nearer than this has no heading
ENOUGH = 20  # moving trajectories, for a claim on their axes
MOST = 0.8


@dataclass(frozen=True)
class Predictions:
    """Trajectories by sample, and what could not be read.

    Attributes:
        trajectories: sample key to (T, 2) m, in the vehicle frame whatever the file's.
        frame: the one of `FRAMES` that the file declares, or that its layout means.
        faults: what was wrong with the rows that were left out, by key.
    """

    trajectories: Mapping[str, NDArray[np.float64]]
    frame: str
    faults: Mapping[str, str]


@os_errors_are_faults()
def read(path: str | Path, *, steps: int, hz: float | None = None) -> Predictions:
    """Read planned trajectories; a row that cannot be right is left out and told in `faults`.

    Layouts, by suffix:

    - ``.json``: ``{"frame": "vehicle" | "lidar", "trajectories": {key: [[x, y], ...]}}`` with an
      optional ``"hz"``; or ``{key: [[x, y], ...]}``, in the vehicle frame.
    - ``.npz``: arrays ``keys`` (N,) and ``trajectories`` (N, T, 2), and optionally ``frame`` and
      ``hz``; what `write` writes. Nothing in it is unpickled.
    - ``.pkl``, ``.pickle``: ``{token: (T, 2) or (1, T, 2 or 3)}``, lidar axes, as AD-MLP's
      ``output_data.pkl``; read by `pickles`, which runs nothing.
    - a WOD-E2E submission, see `submission.read`.

    Args:
        path: the file, or the folder of a submission.
        steps: T.
        hz: waypoints a second that are expected; compared where the file says its own.

    Raises:
        DatasetError: the file is missing, damaged or of another layout, or no row of it is right.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise DatasetError(f"{path} does not exist")
    if path.is_dir() or suffix in ("", ".gz", ".tgz", ".tar"):
        found = _from_submission(path)
    elif suffix in READERS:
        found = READERS[suffix](path)
    else:
        raise DatasetError(f"{path}: unknown kind of file {suffix!r}; have: {LAYOUTS}")
    if found.frame not in FRAMES:
        raise DatasetError(f"{path}: unknown frame {found.frame!r}; have: {', '.join(FRAMES)}")
    if hz is not None and found.hz not in (None, hz):
        raise DatasetError(f"{path} says {found.hz} waypoints a second, expected {hz}")

    trajectories: dict[str, NDArray[np.float64]] = {}
    faults = found.faults
    for key, value in found.rows:
        name = str(key).encode("utf-8", "backslashreplace").decode()
        try:
            if not isinstance(key, str) or name != key:
                raise DatasetError("its key is no text")
            if key in faults or trajectories.pop(key, None) is not None:
                raise DatasetError("it is there twice")
            points = _points(value, steps)
            trajectories[key] = lidar_to_vehicle(points) if found.frame == "lidar" else points
        except DatasetError as fault:
            faults[name] = str(fault)
    if not trajectories:
        first = next((f": {key}: {fault}" for key, fault in faults.items()), "")
        raise DatasetError(f"{path} holds no trajectory of {steps} points{first}")
    return Predictions(trajectories, found.frame, faults)


def write(
    path: str | Path, trajectories: Mapping[str, ArrayLike], *, hz: float | None = None
) -> Path:
    """Write trajectories in the vehicle frame, whole or not at all, for `read`.

    Args:
        path: ends in ``.json`` or ``.npz``.
        trajectories: sample key to (T, 2) m, all of one length.
        hz: waypoints a second, to be said in the file.

    Raises:
        DatasetError: the suffix is another, or shapes differ; nothing was written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".npz"):
        raise DatasetError(f"{path}: predictions are written as .json or .npz")
    points = {key: np.asarray(value, dtype=np.float64) for key, value in trajectories.items()}
    shapes = {value.shape for value in points.values()} or {(0, 2)}
    if len(shapes) > 1 or len(min(shapes)) != 2 or min(shapes)[1] != 2:
        raise DatasetError(f"trajectories of shapes {sorted(shapes)}, expected one of (T, 2)")
    said = {"frame": "vehicle"} | ({} if hz is None else {"hz": hz})

    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            if suffix == ".json":
                rows = {key: value.tolist() for key, value in points.items()}
                file.write(json.dumps(said | {"trajectories": rows}).encode())
            else:
                table = np.array(list(points.values())).reshape(len(points), *min(shapes))
                np.savez(file, keys=np.array(list(points), dtype=np.str_), trajectories=table,
                         **{name: np.array(value) for name, value in said.items()})  # fmt: skip
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_heading(trajectories: Iterable[ArrayLike]) -> None:
    """Refuse trajectories whose axes cannot be those of the vehicle frame.

    Nearly all driving goes forward, so where most of the trajectories that move go along another
    axis, the axes are wrong, and every score would be, without any other sign. Parked vehicles do
    not count, and below `ENOUGH` moving trajectories nothing is claimed.

    Args:
        trajectories: each (T, 2) m, meant to be x forward, y left.

    Raises:
        DatasetError: with the axes that they seem to have, and what to do.
    """
    ends = np.array([np.asarray(it)[-1] for it in trajectories], dtype=np.float64).reshape(-1, 2)
    x, y = ends[np.hypot(*ends.T) > MOVING].T
    if len(x) < ENOUGH:
        return
    ways = {
        "+y": (y > np.abs(x), "lidar axes (x right, y forward): declare the frame 'lidar', or "
               "convert with x = y_lidar, y = -x_lidar"),
        "-y": (-y > np.abs(x), "vehicle axes that were declared as 'lidar': declare the frame "
               "'vehicle'"),
        "-x": (-x > np.abs(y), "axes of reversed sign (x backward): negate them"),
    }  # fmt: skip
    for way, (along, advice) in ways.items():
        if along.mean() >= MOST:
            raise DatasetError(
                f"{along.mean():.0%} of {len(x)} moving trajectories go along {way} of the vehicle "
                f"frame, where +x is forward and +y is left. These look like {advice}"
            )


@dataclass
class _Found:
    """What a file holds, before its rows are judged."""

    rows: Iterable[tuple[Any, Any]]
    frame: Any
    hz: Any = None
    faults: dict[str, str] = field(default_factory=dict)


def _points(value: Any, steps: int) -> NDArray[np.float64]:
    """(steps, 2) finite numbers, or what is wrong. Nested lists are looked at no deeper than that:
    a small file can hold a list of astronomic extent."""
    if isinstance(value, np.ndarray):
        shape: Any = value.shape
        right = shape == (steps, 2) and value.dtype.kind in "fiu"
    else:
        rows = value if isinstance(value, list | tuple) else ()
        shape = f"{len(rows)} rows"
        right = len(rows) == steps and all(map(_is_point, rows))
    if not right:
        raise DatasetError(f"a trajectory of {shape}, expected {steps} points of two numbers")
    try:
        points = np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise DatasetError("it holds a number that is too large") from error
    if not np.isfinite(points).all():
        raise DatasetError("it holds nan or inf")
    return points


def _is_point(row: Any) -> bool:
    if isinstance(row, np.ndarray):
        return row.shape == (2,) and row.dtype.kind in "fiu"
    return (
        isinstance(row, list | tuple)
        and len(row) == 2
        and all(isinstance(it, Real) and not isinstance(it, bool) for it in row)
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all of its keys, also those that are there twice."""


def _from_json(path: Path) -> _Found:
    try:
        content = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, _Pairs):
        raise DatasetError(f"{path} is no JSON object of trajectories by key")
    if "trajectories" not in (named := dict(content)):
        return _Found(content, "vehicle")
    if len(named) < len(content) or set(named) - {"frame", "hz", "trajectories"}:
        raise DatasetError(
            f"{path} has the entries {', '.join(key for key, _ in content)}; expected once each: "
            "frame, trajectories, and perhaps hz"
        )
    if not isinstance(named["trajectories"], _Pairs):
        raise DatasetError(f"{path}: its trajectories are no object by key")
    return _Found(named["trajectories"], named.get("frame", "vehicle"), named.get("hz"))


def _from_npz(path: Path) -> _Found:
    arrays = numpy_files.read_npz(path, ("keys", "trajectories", "frame", "hz"))
    try:
        keys = arrays["keys"].tolist()
        table = arrays["trajectories"]
        frame = arrays["frame"].item() if "frame" in arrays else "vehicle"
        hz = arrays["hz"].item() if "hz" in arrays else None
    except (LookupError, ValueError) as error:
        raise DatasetError(
            f"{path} is no .npz of keys (N,) and trajectories (N, T, 2): {error}"
        ) from error
    if not isinstance(keys, list) or table.shape[:1] != (len(keys),):
        raise DatasetError(
            f"{path}: keys of shape {arrays['keys'].shape} and trajectories of shape "
            f"{table.shape}, expected (N,) and (N, T, 2)"
        )
    return _Found(zip(keys, table, strict=True), frame, hz)


def _from_pickle(path: Path) -> _Found:
    content = pickles.load(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}, expected a dict by token")
    return _Found(((key, _planar(value)) for key, value in content.items()), "lidar")


def _planar(value: Any) -> Any:
    """A plan without AD-MLP's batch axis of one and its third coordinate."""
    if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == 1:
        value = value[0]
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 3:
        value = value[:, :2]
    return value


def _from_submission(path: Path) -> _Found:
    told: list[DatasetError] = []
    found = submission.read(path, on_fault=told.append)
    faults = {f"row {n} that was left out": str(fault) for n, fault in enumerate(told)}
    return _Found(found.predictions.items(), "vehicle", 4, faults)


READERS: Mapping[str, Callable[[Path], _Found]] = {
    ".json": _from_json,
    ".npz": _from_npz,
    ".pkl": _from_pickle,
    ".pickle": _from_pickle,
}
