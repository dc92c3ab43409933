"""Makes a bag of a drive that was recorded otherwise, or of one that never was.

On ``/odometry`` is where the vehicle was, on ``/route`` (once) where it will have gone, on
``/clock`` the time, and on ``/camera/front/compressed`` what its camera saw, where there are
pictures.
"""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.open import open_logs
from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.conversions.trajectory import path as route_of
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import Sample
from fastloop.extras import require

__all__ = ["CAMERA", "CLOCK", "ODOMETRY", "ROUTE", "bag_of", "bag_of_drive", "generated_drive"]

ODOMETRY = "/odometry"
ROUTE = "/route"
CLOCK = "/clock"
CAMERA = "/camera/front/compressed"

Pictures = Iterable[tuple[int, NDArray[np.uint8]]]
"""Stamps in the log's time, rising, and RGB pixels (H, W, 3)."""

_EPOCH_NS = 1_700_000_000_000_000_000  # where the time of a drive begins that counts from elsewhere


def bag_of_drive(
    path: str | Path, messages: Messages, drive: str | Path | None = None, *, seconds: float = 60.0
) -> int:
    """Write a bag of a recorded drive, or of a generated one; returns its number of messages.

    Args:
        path: of the bag, ``.mcap``.
        drive: the first one at that place is taken: a folder or file of any format that
            `fastloop.datasets.logs.open` reads. Of comma2k19, ``video.hevc`` is the camera.
        seconds: from its beginning.

    Raises:
        DatasetError: it cannot be read.
        OSError: the bag cannot be written.
    """
    if drive is None:
        log, pictures = generated_drive(seconds)
    else:
        found = next(iter(open_logs(drive)), None)
        if found is None:
            raise DatasetError(f"{drive} holds no drive")
        log, pictures = found, _video(Path(drive), found)
    return bag_of(log, pictures, path, messages, seconds=seconds)


def bag_of(
    log: DrivingLog,
    pictures: Pictures,
    path: str | Path,
    messages: Messages,
    *,
    seconds: float = math.inf,
) -> int:
    """Write a bag of a log and the pictures that belong to it; returns its number of messages.

    Raises:
        ValueError: the log does not tell where its ego was.
        OSError: the bag cannot be written.
    """
    if log.ego is None or log.tracks[log.ego].valid.sum() < 2:
        raise ValueError(f"{log.name} does not tell where its ego was, twice or more")
    first = int(log.stamps[0])
    shift = 0 if first > 10**18 else _EPOCH_NS - first
    count = 0
    with BagWriter(path, messages) as bag:
        found = heapq.merge(
            _odometry(log, messages), _camera(pictures, messages), key=lambda s: s.received_ns
        )
        for sample in found:
            if sample.received_ns > first + seconds * 1e9:
                break
            now = sample.received_ns + shift
            data = messages.restamped(sample.type, sample.data, now)
            bag.write(Sample(sample.topic, sample.type, data, now, now))
            count += 1
    return count


def _odometry(log: DrivingLog, messages: Messages) -> Iterator[Sample]:
    assert log.ego is not None
    ego = log.tracks[log.ego]
    seen = ego.valid
    stamps = log.stamps[seen]
    t = (stamps - stamps[0]) / 1e9
    position, heading = ego.position[seen], np.unwrap(ego.heading[seen])
    velocity = ego.velocity[seen]
    if not np.isfinite(velocity).all():
        velocity = np.gradient(position[:, :2], t, axis=0)
    speed = velocity[:, 0] * np.cos(heading) + velocity[:, 1] * np.sin(heading)
    points = np.column_stack([position[:, :2], heading, speed, np.gradient(speed, t)])
    rates = np.gradient(heading, t)

    def sample(topic: str, message: object, stamp: int) -> Sample:
        return Sample(topic, message.__msgtype__, messages.encode(message), stamp, stamp)  # type: ignore[attr-defined]

    first = int(stamps[0])
    yield sample(ROUTE, route_of(messages, t, points, first, frame="odom"), first)
    clock = messages.type("rosgraph_msgs/msg/Clock")
    for stamp, point, rate in zip(stamps.tolist(), points, rates.tolist(), strict=True):
        yield sample(CLOCK, clock(messages.time(stamp)), stamp)
        yield sample(ODOMETRY, make_odometry(messages, stamp, point, yaw_rate=rate), stamp)


def _camera(pictures: Pictures, messages: Messages) -> Iterator[Sample]:
    kind = "sensor_msgs/msg/CompressedImage"
    for stamp, pixels in pictures:
        file = io.BytesIO()
        require("PIL.Image", extra="ros").fromarray(pixels).save(file, "jpeg", quality=90)
        message = messages.type(kind)(
            messages.header(stamp, "camera_front"), "jpeg", np.frombuffer(file.getvalue(), np.uint8)
        )
        yield Sample(CAMERA, kind, messages.encode(message), stamp, stamp)


def _video(drive: Path, log: DrivingLog) -> Pictures:
    """The video beside a log of comma2k19, a frame a pose; none where there is none."""
    found = sorted(drive.rglob("video.hevc")) if log.source == "comma2k19" else []
    own = [file for file in found if f"{file.parent.parent.name}/{file.parent.name}" == log.name]
    if not own:
        return
    av = require("av", extra="data")
    with av.open(str(own[0])) as video:
        frames = video.decode(video=0)
        for stamp, frame in zip(log.stamps.tolist(), frames, strict=False):
            yield stamp, frame.to_ndarray(format="rgb24")


def generated_drive(
    seconds: float, *, hz: float = 20.0, size: tuple[int, int] = (240, 320)
) -> tuple[DrivingLog, Pictures]:
    """A winding road, driven along at 8 to 12 m/s, and what a camera on it sees (H, W as in
    `size`)."""
    t = np.arange(math.ceil(seconds * hz) + 1) / hz
    speed = 10 + 2 * np.sin(2 * np.pi * t / 23)
    rate = 0.08 * np.sin(2 * np.pi * t / 17) + 0.04 * np.sin(2 * np.pi * t / 7)
    heading = np.cumsum(rate) / hz
    velocity = speed[:, None] * np.column_stack([np.cos(heading), np.sin(heading)])
    position = np.column_stack([np.cumsum(velocity, axis=0) / hz, np.zeros(len(t))])
    stamps = _EPOCH_NS + np.round(t * 1e9).astype(np.int64)
    ego = Track("vehicle", position, heading, velocity, np.array([4.7, 1.9, 1.6]),
                np.ones(len(t), np.bool_))  # fmt: skip
    log = DrivingLog("generated", "generated", "x east, y north, m", stamps, "ego", {"ego": ego})
    pictures = (
        (stamp, _view(bend, size))
        for stamp, bend in zip(stamps.tolist(), (rate / speed).tolist(), strict=True)
    )
    return log, pictures


def _view(curvature: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A road of two lanes that bends by `curvature` (1/m, left positive), from 1.4 m above it."""
    height, width = size
    focal = width / 2
    picture = np.full((height, width, 3), (150, 190, 230), np.uint8)
    rows = np.arange(height // 2 + 1, height)
    ahead = (1.4 * focal / (rows - height / 2))[:, None]
    left = (width / 2 - np.arange(width) - 0.5) * ahead / focal - curvature * ahead**2 / 2
    near = picture[rows[0] :]
    near[:] = (90, 120, 70)
    near[np.abs(left - 1.75) < 3.6] = (80, 80, 85)
    for line in (-1.75, 1.75, 5.25):
        near[np.abs(left - line) < 0.08 + 0.002 * ahead] = (240, 240, 240)
    return picture
