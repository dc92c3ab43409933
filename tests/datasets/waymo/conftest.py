"""Small files of WOD-E2E frames, made here."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from fastloop.datasets import tfrecord
from fastloop.datasets.waymo.protos import messages

SEQUENCE = "0123456789abcdef0123456789abcdef"


def set_points(states, points):
    for channel, column in zip(("pos_x", "pos_y", "pos_z"), np.transpose(points), strict=False):
        getattr(states, channel)[:] = column.tolist()


def straight(speed=8.0, steps=20, side=0.0):
    seconds = np.arange(1, steps + 1) / 4
    return np.stack([speed * seconds, side * seconds], axis=1)


def jpeg(width=24, height=32, seed=0):
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def message(
    name=f"{SEQUENCE}-040",
    *,
    speed=8.0,
    ratings=((9, 0.0), (4, 0.2), (1, 0.4)),
    points=21,
    future=True,
    images=(),
):
    """A frame that goes straight ahead; `ratings` are (score, sideways speed), `images` are
    (number of the camera, JPEG)."""  # fmt: skip
    frame = messages("waymo.open_dataset.E2EDFrame")()
    frame.frame.context.name = name
    frame.intent = 1
    past = frame.past_states
    times = np.arange(-15, 1) / 4
    set_points(past, np.stack([speed * times, 0 * times], axis=1))
    past.vel_x[:] = [speed] * 16
    past.vel_y[:] = past.accel_x[:] = past.accel_y[:] = [0.0] * 16
    if future:
        set_points(frame.future_states, np.column_stack([straight(speed), np.zeros(20)]))
    for score, side in ratings:
        states = frame.preference_trajectories.add(preference_score=score)
        set_points(states, straight(speed, points, side))
    for number, data in images:
        frame.frame.images.add(name=number, image=data)
    for number, _ in reversed(images):
        calibration = frame.frame.context.camera_calibrations.add(name=number, width=24, height=32)
        calibration.intrinsic[:] = [100 + number, 100, 12, 16, 0, 0, 0, 0, 0]
        calibration.extrinsic.transform[:] = np.eye(4).ravel().tolist()
    return frame


def write(path, *frames):
    return tfrecord.write(path, [frame.SerializeToString() for frame in frames])


@pytest.fixture(scope="session")
def wod():
    """What makes small files of frames."""
    for package in ("google_crc32c", "google.protobuf"):
        pytest.importorskip(package)
    return SimpleNamespace(
        SEQUENCE=SEQUENCE, jpeg=jpeg, message=message, straight=straight, write=write
    )
