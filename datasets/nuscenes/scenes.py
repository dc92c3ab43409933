"""A nuScenes root opened: its scenes, keyframes, boxes and pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.poses import rotations, yaws
from fastloop.datasets.nuscenes.tables import CameraData, Tables, read_tables
from fastloop.extras import require

__all__ = ["CAMERAS", "Boxes", "NuScenes"]

CAMERAS = {
    "front": "CAM_FRONT", "front_left": "CAM_FRONT_LEFT", "front_right": "CAM_FRONT_RIGHT",
    "back": "CAM_BACK", "back_left": "CAM_BACK_LEFT", "back_right": "CAM_BACK_RIGHT",
}  # fmt: skip
"""Name of a camera in observations, and its channel."""

LARGEST_PICTURE = 1 << 26  # bytes; a picture of nuScenes has some 150 thousand


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of one keyframe, in the map's frame.

    Attributes:
        tokens: of the M annotations.
        center: (M, 3) m.
        size: (M, 3) length, width, height in m.
        yaw: (M,) rad, where the length points.
        category: names.
        visibility: (M,) 1 (below 40 % to be seen) to 4 (over 80 %), 0 where it is not said.
        instance: tokens of the objects.
        lidar_points: (M,) that fell into each.
    """

    tokens: tuple[str, ...]
    center: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: NDArray[np.float64]
    category: tuple[str, ...]
    visibility: NDArray[np.int64]
    instance: tuple[str, ...]
    lidar_points: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)


class NuScenes:
    """The keyframes of a split; a sample is named by its token or its index in `tables.tokens`.

    Args:
        root: the folder with ``v1.0-trainval`` (or another version), ``maps`` and, where it is
            there, ``samples``.
        version: for instance ``v1.0-mini``.
        split: an official split, for instance ``val``; None: all scenes.

    Raises:
        DatasetError: tables are missing or damaged.
    """

    def __init__(
        self, root: str | Path, version: str = "v1.0-trainval", split: str | None = None
    ) -> None:
        self.root, self.version, self.split = Path(root), version, split
        self.tables: Tables = read_tables(self.root, version, split)

    def __len__(self) -> int:
        return len(self.tables.tokens)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Index of each sample by its token."""
        return {token: i for i, token in enumerate(self.tables.tokens)}

    def boxes(self, sample: int) -> Boxes:
        """The annotations of sample `sample`."""
        every = self.tables.boxes
        rows = slice(every.starts[sample], every.starts[sample + 1])
        return Boxes(
            tokens=tuple(every.tokens[rows]),
            center=every.center[rows],
            size=every.size[rows],
            yaw=yaws(rotations(every.rotation[rows])),
            category=tuple(every.categories[i] for i in every.category[rows]),
            visibility=every.visibility[rows],
            instance=tuple(every.instances[i] for i in every.instance[rows]),
            lidar_points=every.lidar_points[rows],
        )

    def cameras(self, sample: int) -> dict[str, CameraData]:
        """The pictures of sample `sample` by channel; whether the files exist shows on reading."""
        return self.tables.cameras(sample)

    def jpeg(self, sample: int, channel: str) -> bytes:
        """The picture of a channel, for instance ``CAM_FRONT``, as its file holds it.

        Raises:
            DatasetError: the tables have no such picture, or its file is missing.
        """
        cameras = self.cameras(sample)
        token = self.tables.tokens[sample]
        if channel not in cameras:
            have = ", ".join(sorted(cameras)) or "none"
            raise DatasetError(f"sample {token}: no picture of {channel!r}; have: {have}")
        path = (self.root / cameras[channel].path).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise DatasetError(
                f"sample {token}: {cameras[channel].path!r} leads out of {self.root}"
            )
        try:
            if path.stat().st_size > LARGEST_PICTURE:
                raise DatasetError(f"sample {token}: {path} is too large for a picture")
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"sample {token}: cannot read {path} ({error.strerror}): "
                "the sensor files are apart from the tables; are they unpacked there?"
            ) from error

    def pixels(self, sample: int, channel: str) -> NDArray[np.uint8]:
        """(3, H, W) RGB of the picture of a channel.

        Raises:
            DatasetError: as `jpeg`, or where it is no JPEG or a damaged one.
        """
        jpeg = self.jpeg(sample, channel)
        pillow = require("PIL.Image", extra="data")
        try:
            with pillow.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            path = self.cameras(sample)[channel].path
            raise DatasetError(f"{path}: no JPEG, or a damaged one ({error})") from error
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
