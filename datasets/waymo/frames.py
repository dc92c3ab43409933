"""Frames of the Waymo Open Dataset for end-to-end driving, as arrays."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets import tfrecord
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo import protos, wire
from fastloop.extras import require

__all__ = ["CAMERAS", "FUTURE", "PAST", "Calibration", "Camera", "Frame", "parse", "read"]

PAST, FUTURE = 16, 20  # states at 4 Hz
CAMERAS = {
    1: "front", 2: "front_left", 3: "front_right", 4: "side_left", 5: "side_right",
    6: "back_left", 7: "back", 8: "back_right",
}  # fmt: skip
"""Waymo's numbers of cameras to fastloop's names of them."""

NAME = re.compile(r"(.+)-(\d{1,9})", re.ASCII)
FRAME, IMAGES, IMAGE = 1, 4, 2  # field numbers of E2EDFrame.frame, Frame.images, CameraImage.image


@dataclass(frozen=True)
class Calibration:
    """How a camera sees.

    Attributes:
        intrinsic: (9,) focal lengths u, v and center u, v in pixels, then k1, k2, p1, p2, k3; None
            where it is not given.
        extrinsic: (4, 4) camera to vehicle, m; the camera looks along its x axis, y is left, z is
            up. None where it is not given.
        width, height: pixels.
    """

    intrinsic: NDArray[np.float64] | None
    extrinsic: NDArray[np.float64] | None
    width: int
    height: int


@dataclass(frozen=True)
class Camera:
    """One camera's picture, which stays in the file until it is asked for.

    Attributes:
        where: file and offset of its frame, and its name.
        path, record, span: the file, the (offset, length) of its record in it, and the (start,
            stop) of the JPEG in the record's payload.
        calibration: None where it is not given.
    """

    where: str
    path: Path
    record: tuple[int, int]
    span: tuple[int, int]
    calibration: Calibration | None

    def jpeg(self) -> bytes:
        """The picture as it was recorded; raises `DatasetError` where the file has changed."""
        payload = tfrecord.read(self.path, *self.record, verify=False)
        return bytes(payload[slice(*self.span)])

    def size(self) -> tuple[int, int]:
        """Height and width of the JPEG in pixels, without decoding it."""
        image = self._open()
        return image.height, image.width

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB.

        Raises:
            DatasetError: where it is no JPEG, or a damaged one.
            MissingExtraError: without Pillow.
        """
        image = self._open()
        try:
            return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise DatasetError(f"{self.where}: a damaged JPEG ({error})") from error

    def _open(self) -> Any:
        pillow = require("PIL.Image", extra="data")
        try:
            return pillow.open(io.BytesIO(self.jpeg()), formats=["JPEG"])
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DatasetError(f"{self.where}: no JPEG ({error})") from error


@dataclass(frozen=True)
class Frame:
    """One moment: where the vehicle was, where it went, and what people thought of other ways.

    All positions are of the middle of the rear axle, in the vehicle's present frame: x forward, y
    left, z up.

    Attributes:
        name: ``<sequence>-<index>``.
        sequence: the drive it is of.
        index: its place there, at 10 Hz.
        intent: 0 unknown, 1 straight, 2 left, 3 right.
        past: (16, 6) float64 x, y, vx, vy, ax, ay (m, m/s, m/s2) at 4 Hz, oldest first, the last is
            now. Waymo repeats the last but one velocity and acceleration there.
        future: (20, 2), or (20, 3) where z is known, float64 m at 4 Hz, the first 0.25 s ahead;
            None where it is withheld.
        raters: (n, 2) float64 m at 4 Hz, trajectories that people rated, most with 21 points, some
            with fewer than 20; empty where nobody did.
        scores: (len(raters),) float64 from 0 to 10; None where nobody rated.
        cameras: by name, see `CAMERAS`.
    """

    name: str
    sequence: str
    index: int
    intent: int
    past: NDArray[np.float64]
    future: NDArray[np.float64] | None
    raters: tuple[NDArray[np.float64], ...]
    scores: NDArray[np.float64] | None
    cameras: Mapping[str, Camera]

    @property
    def speed(self) -> float:
        """m/s now."""
        return float(np.hypot(*self.past[-1, 2:4]))


def read(path: str | Path, offset: int, length: int | None = None, *, verify: bool = True) -> Frame:
    """The frame in the record at `offset`; arguments and faults as in `tfrecord.read`.

    Raises:
        DatasetError: where the record or the frame in it is damaged.
    """
    return parse(tfrecord.read(path, offset, length, verify=verify), Path(path), offset)


def parse(payload: memoryview, path: Path, offset: int) -> Frame:
    """The frame in a record of `path` at `offset`; its pictures are not looked at.

    Raises:
        DatasetError: where a name, state or rating is missing, not finite or of another length.
    """
    where = f"{path} at byte {offset}"
    message, content, images = _message(payload, where)
    name = protos.text(content.context, "name", where=where)
    parts = NAME.fullmatch(name)
    if not parts:
        raise DatasetError(f"{where}: a frame called {name!r}; expected <sequence>-<number>")
    where += f" ({name})"

    past = message.past_states
    channels = ("pos_x", "pos_y", "vel_x", "vel_y", "accel_x", "accel_y")
    raters, scores = _ratings(message.preference_trajectories, where)
    return Frame(
        name=name,
        sequence=parts[1],
        index=int(parts[2]),
        intent=message.intent,
        past=_columns(past, channels, PAST, f"{where}: past_states"),
        future=_future(message.future_states, where),
        raters=raters,
        scores=scores,
        cameras=_cameras(content.context, images, where, path, (offset, len(payload))),
    )


def _message(payload: memoryview, where: str) -> tuple[Any, Any, list[tuple[Any, tuple[int, int]]]]:
    """The E2EDFrame without its Frame; the Frame without its images; the images without their
    JPEGs, each with the JPEG's span in the payload."""
    rest, spans = wire.split(payload, FRAME, where=where)
    message = protos.parse("waymo.open_dataset.E2EDFrame", rest, where=where)
    pieces, images = [], []
    for start, stop in spans:
        rest, found = wire.split(payload[start:stop], IMAGES, where=where)
        pieces.append(rest)
        images += [(start + a, start + b) for a, b in found]
    pictures = []
    for start, stop in images:
        rest, jpegs = wire.split(payload[start:stop], IMAGE, where=where)
        image = protos.parse("waymo.open_dataset.CameraImage", rest, where=where)
        pictures += [(image, (start + a, start + b)) for a, b in jpegs[-1:]]
    frame = protos.parse("waymo.open_dataset.Frame", b"".join(pieces), where=where)
    return message, frame, pictures


def _columns(
    states: Any, channels: tuple[str, ...], length: int | None, what: str
) -> NDArray[np.float64]:
    """The named channels of EgoTrajectoryStates side by side, `length` rows or all there are."""
    columns = [np.array(getattr(states, channel), np.float64) for channel in channels]
    length = len(columns[0]) if length is None else length
    for channel, column in zip(channels, columns, strict=True):
        if len(column) != length:
            raise DatasetError(f"{what} have {len(column)} of {channel}, expected {length}")
        if not np.isfinite(column).all():
            raise DatasetError(f"{what} have a {channel} that is not finite")
    return np.stack(columns, axis=1)


def _future(states: Any, where: str) -> NDArray[np.float64] | None:
    if not len(states.pos_x) and not len(states.pos_y):
        return None
    channels = ("pos_x", "pos_y", "pos_z") if len(states.pos_z) else ("pos_x", "pos_y")
    return _columns(states, channels, FUTURE, f"{where}: future_states")


def _ratings(
    trajectories: Any, where: str
) -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.float64] | None]:
    """Rated trajectories and their scores; Waymo marks frames that nobody rated with scores -1."""
    scores = np.array([states.preference_score for states in trajectories], np.float64)
    if not len(scores) or not trajectories[0].HasField("preference_score") or scores[0] == -1:
        return (), None
    if not ((scores >= 0) & (scores <= 10)).all():
        raise DatasetError(f"{where}: ratings of {scores.tolist()}, expected 0 to 10")
    what = f"{where}: preference_trajectories"
    raters = tuple(_columns(states, ("pos_x", "pos_y"), None, what) for states in trajectories)
    if not all(map(len, raters)):
        raise DatasetError(f"{what} have one without points")
    return raters, scores


def _cameras(
    context: Any,
    images: list[tuple[Any, tuple[int, int]]],
    where: str,
    path: Path,
    record: tuple[int, int],
) -> dict[str, Camera]:
    """Pictures beside the calibration of the same name: the two lists differ in their order."""
    calibrations = {}
    for message in context.camera_calibrations:
        calibrations[message.name] = Calibration(
            intrinsic=_numbers(message.intrinsic, (9,), f"{where}: intrinsic"),
            extrinsic=_numbers(message.extrinsic.transform, (4, 4), f"{where}: extrinsic"),
            width=message.width,
            height=message.height,
        )
    cameras = {}
    for image, span in images:
        name = CAMERAS.get(image.name)
        if name is None or name in cameras:
            raise DatasetError(f"{where}: two images of camera {name}, or one of no camera")
        cameras[name] = Camera(
            f"{where}, camera {name}", path, record, span, calibrations.get(image.name)
        )
    return cameras


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> NDArray[np.float64] | None:
    if not len(values):
        return None
    numbers = np.array(values, np.float64)
    if numbers.size != math.prod(shape) or not np.isfinite(numbers).all():
        raise DatasetError(f"{what} has {numbers.size} numbers, expected {shape} finite ones")
    return numbers.reshape(shape)
