"""One table of a nuScenes root: the wanted rows, and checked ways to make columns of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.rows import read_rows

__all__ = ["Table"]


_XYZ = tuple[float, float, float]
_WXYZ = tuple[float, float, float, float]
_FIELDS: dict[str, dict[str, Any]] = {
    "log": {"token": str, "location": str},
    "scene": {
        "token": str, "name": str, "description": str, "log_token": str, "nbr_samples": int,
        "first_sample_token": str, "last_sample_token": str,
    },
    "sample": {"token": str, "timestamp": int, "scene_token": str, "prev": str, "next": str},
    "sensor": {"token": str, "channel": str, "modality": str},
    "calibrated_sensor": {
        "token": str, "sensor_token": str, "translation": _XYZ, "rotation": _WXYZ,
        "camera_intrinsic": list[list[float]],
    },
    "sample_data": {
        "token": str, "sample_token": str, "ego_pose_token": str, "calibrated_sensor_token": str,
        "is_key_frame": bool, "filename": str, "height": int, "width": int,
    },
    "ego_pose": {"token": str, "translation": _XYZ, "rotation": _WXYZ},
    "category": {"token": str, "name": str},
    "visibility": {"token": str},
    "instance": {"token": str, "category_token": str},
    "sample_annotation": {
        "token": str, "sample_token": str, "instance_token": str, "visibility_token": str,
        "translation": _XYZ, "size": _XYZ, "rotation": _WXYZ, "prev": str, "next": str,
        "num_lidar_pts": int, "num_radar_pts": int,
    },
}  # fmt: skip


class Table:
    """The rows kept of one table, as objects with its fields, and where each stood in the file.

    Args:
        folder: of the release, for instance ``<root>/v1.0-mini``.
        name: of the table.
        keep: whether a row is wanted; a `KeyError` in it is a reference that leads nowhere.
    """

    def __init__(self, folder: Path, name: str, keep: Callable[[Any], bool] | None = None) -> None:
        self.name, self.rows, self.places = name, [], []
        place = 0
        for block in read_rows(folder / f"{name}.json", _FIELDS[name]):
            kept = list(range(len(block))) if keep is None else self._kept(block, place, keep)
            self.rows += [block[i] for i in kept]
            self.places += [place + i for i in kept]
            place += len(block)
        self.index = {row.token: i for i, row in enumerate(self.rows)}
        if len(self.index) != len(self.rows):
            # The index holds the last row of each token.
            twice = next(i for i, row in enumerate(self.rows) if self.index[row.token] != i)
            raise self.fault(self.index[self.rows[twice].token], "another row has this token")

    def _kept(self, block: list[Any], place: int, keep: Callable[[Any], bool]) -> list[int]:
        try:
            return [i for i, row in enumerate(block) if keep(row)]
        except KeyError as error:
            row = next(i for i, row in enumerate(block) if error.args[0] in _references(row))
            raise DatasetError(
                f"{self.name}.json, row {place + row}, token {block[row].token!r}: it refers to "
                f"{error.args[0]!r}, which no table has"
            ) from None

    def __len__(self) -> int:
        return len(self.rows)

    def fault(self, row: int, words: str) -> DatasetError:
        """An error that names the table, the row in the file and its token."""
        token = self.rows[row].token
        return DatasetError(f"{self.name}.json, row {self.places[row]}, token {token!r}: {words}")

    def refuse(self, wrong: NDArray[np.bool_], words: str) -> None:
        """Raise for the first row that is `wrong`."""
        if wrong.any():
            raise self.fault(int(np.argmax(wrong)), words)

    def integers(self, field: str) -> NDArray[np.int64]:
        """(rows,) the whole numbers of a field."""
        values = [getattr(row, field) for row in self.rows]
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            row = next(i for i, value in enumerate(values) if abs(value) >= 2**63)
            raise self.fault(row, f"{field} is {values[row]}, beyond 64 bits") from None

    def numbers(self, field: str, width: int) -> NDArray[np.float64]:
        """(rows, width) the finite numbers of a field; quaternions come normalized."""
        flat = chain.from_iterable(getattr(row, field) for row in self.rows)
        values = np.fromiter(flat, np.float64, width * len(self)).reshape(-1, width)
        wrong = ~np.isfinite(values).all(axis=1)
        self.refuse(wrong, f"{field} holds a number that is not finite")
        if field == "rotation":
            norm = np.linalg.norm(values, axis=1, keepdims=True)
            self.refuse(abs(norm[:, 0] - 1) > 1e-3, "rotation is no unit quaternion")
            values = values / norm
        return values

    def references(self, field: str, other: Table, empty: bool = False) -> NDArray[np.int64]:
        """(rows,) where the tokens of `field` stand in `other`; -1 for the empty one if allowed."""
        index = other.index | {"": -1} if empty else other.index
        found = np.array([index.get(getattr(row, field), -2) for row in self.rows], dtype=np.int64)
        if (found == -2).any():
            row = int(np.argmax(found == -2))
            token = getattr(self.rows[row], field)
            raise self.fault(row, f"{field} is {token!r}, which {other.name}.json lacks")
        return found


def _references(row: Any) -> list[str]:
    fields = ("sample_token", "calibrated_sensor_token")
    return [getattr(row, field) for field in fields if hasattr(row, field)]
