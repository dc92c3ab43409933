"""What a LeRobot dataset says of itself in ``info.json``: features, rate, and where files are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.images import LARGEST_IMAGE

__all__ = ["Feature", "Info", "complete", "inside", "read_json"]

FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # what a template may hold: {name} or {name:03d}


@dataclass(frozen=True)
class Feature:
    """One column: `dtype` is NumPy's name of it, ``image`` or ``video``; `shape` of one frame,
    (3, H, W) of images."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether frames are pictures, in a video or each by itself."""
        return self.dtype in ("image", "video")


@dataclass(frozen=True)
class Info:
    """The description of a dataset.

    Attributes:
        version: major and minor of ``codebase_version``.
        fps: frames in a second.
        features: by key.
        data_path, video_path: templates of paths inside the folder; None where there are none.
        chunks_size: episodes (version 2) or files (version 3) in a folder.
        total_episodes: as many must be listed; None where it does not say.
    """

    version: tuple[int, int]
    fps: float
    features: Mapping[str, Feature]
    data_path: str | None
    video_path: str | None
    chunks_size: int
    total_episodes: int | None

    @classmethod
    def read(cls, path: Path) -> Info:
        """Read ``meta/info.json`` of versions 2 and 3.

        Raises:
            DatasetError: saying which entry is missing or makes no sense.
        """
        facts = read_json(path)
        try:
            features = {
                str(key): _feature(key, facts, path) for key, facts in facts["features"].items()
            }
            version = tuple(int(n) for n in facts["codebase_version"].removeprefix("v").split("."))
            info = cls(
                version=(version[0], version[1] if len(version) > 1 else 0),
                fps=float(facts["fps"]),
                features=features,
                data_path=facts["data_path"],
                video_path=facts.get("video_path"),
                chunks_size=int(facts.get("chunks_size", 1000)),
                total_episodes=int(facts["total_episodes"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{path} is not what LeRobot writes: {type(error).__name__} {error}"
            ) from error
        if not (math.isfinite(info.fps) and info.fps > 0 and info.chunks_size > 0):
            raise DatasetError(f"{path}: fps and chunks_size must be above 0")
        return info


def complete(info: Info, listed: int, where: Path) -> None:
    """Check that as many episodes are listed as there are said to be.

    Raises:
        DatasetError: there are fewer, or more.
    """
    if listed != info.total_episodes:
        raise DatasetError(
            f"{where} lists {listed} episodes, meta/info.json says {info.total_episodes}"
        )


def inside(root: Path, template: Any, **values: Any) -> Path:
    """The file that a path template names, which must lie inside `root`.

    Raises:
        DatasetError: the template holds more than ``{name}`` or ``{name:03d}``, an unknown name, or
            leads out of the folder.
    """
    if not isinstance(template, str):
        raise DatasetError(f"{root}: a path is expected, not {template!r}")

    def fill(field: re.Match[str]) -> str:
        name, width = field.groups()
        if name not in values or (width and not isinstance(values[name], int)):
            raise DatasetError(
                f"{root}: the path {template!r} cannot have a field {field.group()}; "
                f"there are {', '.join(values)}"
            )
        return f"{values[name]:0{width}d}" if width else str(values[name])

    filled = FIELD.sub(fill, template)
    place = PurePosixPath(filled)
    if "{" in FIELD.sub("", template) or "\0" in filled or not place.parts:
        raise DatasetError(f"{root}: {template!r} is no path of a dataset")
    if place.is_absolute() or ".." in place.parts:
        raise DatasetError(f"{root}: the path {filled!r} leads out of the dataset")
    return root / place


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DatasetError: it does not exist or is none.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise DatasetError(f"{path} holds {type(facts).__name__}, expected an object")
    return facts


def _feature(key: str, facts: Any, path: Path) -> Feature:
    dtype, shape = str(facts["dtype"]), tuple(int(n) for n in facts["shape"])
    if min(shape, default=1) < 0:
        raise DatasetError(f"{path}: {key} has shape {shape}")
    if dtype not in ("image", "video"):
        return Feature(dtype, shape)
    if len(shape) == 3 and shape[0] != 3 and shape[2] == 3:  # written with the channels last
        shape = (3, *shape[:2])
    if len(shape) != 3 or shape[0] != 3 or not 0 < math.prod(shape[1:]) <= LARGEST_IMAGE:
        raise DatasetError(f"{path}: {key} has shape {facts['shape']}, expected (H, W, 3)")
    return Feature(dtype, shape)
