"""CAN bus expansion of nuScenes: what the vehicle said of itself, at up to 100 Hz."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["BLACKLIST", "MESSAGES", "read_can_bus", "read_route"]

MESSAGES = (
    "ms_imu", "pose", "steeranglefeedback", "vehicle_monitor", "zoe_veh_info", "zoesensors",
)  # fmt: skip
BLACKLIST = frozenset((*range(161, 169), *range(170, 177), *range(309, 315)))
"""Numbers of the 21 scenes whose messages are missing or wrong."""

LARGEST = 1 << 27  # bytes; the largest file has some 10^6
_NAME = re.compile(r"scene-\d{4}\Z")


def read_can_bus(root: str | Path, scene: str, message: str = "pose") -> dict[str, NDArray[Any]]:
    """One kind of message of one scene as columns.

    ``pose`` (50 Hz) holds ``utime`` (int64 microseconds), ``pos`` (m, map), ``vel`` (m/s, vehicle:
    x forward), ``accel`` (m/s2, vehicle), ``orientation`` (w, x, y, z) and ``rotation_rate``;
    ``steeranglefeedback`` (100 Hz) ``utime`` and ``value`` (rad, left positive).

    Args:
        root: the folder that holds ``can_bus``.
        scene: name, for instance ``scene-0061``.
        message: one of `MESSAGES`.

    Returns:
        field to array (T,) or (T, d); T rows in the order of the file.

    Raises:
        DatasetError: the scene has no messages, or the file is missing or damaged.
    """
    if message not in MESSAGES:
        raise DatasetError(f"unknown message {message!r}; have: {', '.join(MESSAGES)}")
    path, rows = _read(root, scene, message)
    if not rows:
        return {"utime": np.zeros(0, dtype=np.int64)}
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise DatasetError(f"{path}: its rows are not objects of the same fields")
    return {str(field): _column(path, field, rows) for field in rows[0]}


def read_route(root: str | Path, scene: str) -> NDArray[np.float64]:
    """(N, 2) m, map: the planned route of one scene; arguments and errors of `read_can_bus`."""
    path, rows = _read(root, scene, "route")
    route: NDArray[np.float64] = _numbers(path, "route", rows, np.float64)
    if len(rows) and (route.ndim != 2 or route.shape[1] != 2):
        raise DatasetError(f"{path}: the route is of shape {route.shape}, expected points (N, 2)")
    return route.reshape(-1, 2)


def _read(root: str | Path, scene: str, message: str) -> tuple[Path, list[Any]]:
    if not _NAME.match(scene):
        raise DatasetError(f"{scene!r} names no scene, as scene-0061 does")
    if int(scene[-4:]) in BLACKLIST:
        raise DatasetError(f"{scene} has no usable CAN bus messages: it is one of 21 such scenes")
    path = Path(root) / "can_bus" / f"{scene}_{message}.json"
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise DatasetError(f"{path} is no file")
        if path.stat().st_size > LARGEST:
            raise DatasetError(f"{path} has {path.stat().st_size} bytes: too many for a scene")
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"cannot read {path} ({error.strerror}): is the CAN bus expansion unpacked in {root}?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: expected a list, not {type(rows).__name__}")
    return path, rows


def _column(path: Path, field: str, rows: list[dict[str, Any]]) -> NDArray[Any]:
    kind = np.int64 if field == "utime" else np.float64
    return _numbers(path, field, [row[field] for row in rows], kind)


def _numbers(path: Path, field: str, values: list[Any], kind: Any) -> NDArray[Any]:
    try:
        column = np.array(values)
        if column.dtype.kind not in "iufb" and len(values):
            raise ValueError(f"it holds {column.dtype}")
        return column.astype(kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path}: {field} is no column of numbers ({error})") from error
