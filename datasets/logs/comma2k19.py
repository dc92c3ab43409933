"""Drives of comma2k19: one minute of a commute each, with the bus of the car.

A segment is a folder of ``.npy`` files without an ending. ``global_pose`` holds the pose of the
camera at 20 Hz, as the source gives it: position in m and velocity in m/s in the earth-centered,
earth-fixed frame (ECEF), orientation as the quaternion w, x, y, z that turns forward-right-down
axes of the camera into ECEF. Here it becomes the ego track in east-north-up axes about the first
position. ``processed_log`` holds the signals, each with its own stamps: the car's bus at about
80 Hz, the inertial sensors at about 100 Hz (forward-right-down axes), the radar's 14 tracks, the
satellite receivers at 0.5 and 10 Hz. All stamps count from the start of the device.

Follows the description in https://github.com/commaai/comma2k19 (Schafer et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.numpy_files import read_npy

__all__ = ["SIGNALS", "read"]

_DEG = math.pi / 180
_LIVE_GNSS = (
    "latitude_deg", "longitude_deg", "speed", "utc_ms", "altitude", "bearing_deg",
)  # fmt: skip

SIGNALS: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "speed": ("CAN/speed", 1, ("speed",)),
    "wheel_speed": (
        "CAN/wheel_speed", 1, ("front_left", "front_right", "rear_left", "rear_right"),
    ),
    "steering_angle": ("CAN/steering_angle", _DEG, ("steering_angle",)),
    "radar": (
        "CAN/radar", 1, ("forward", "left", "relative_speed", "", "", "address", "new_track"),
    ),
    "acceleration": ("IMU/accelerometer", 1, ("forward", "right", "down")),
    "angular_velocity": ("IMU/gyro", 1, ("forward", "right", "down")),
    "angular_velocity_raw": ("IMU/gyro_uncalibrated", 1, ("forward", "right", "down")),
    "magnetic_field": ("IMU/magnetometer", 1e-6, ("forward", "right", "down")),
    "gnss_qcom": ("GNSS/live_gnss_qcom", 1, _LIVE_GNSS),
    "gnss_ublox": ("GNSS/live_gnss_ublox", 1, _LIVE_GNSS),
}  # fmt: skip
"""Signal to its folder, the factor that makes it SI, and its columns: m, m/s, m/s^2, rad/s, T; the
angle of the steering wheel in rad, left positive. A column without a name is empty in the source.
"""

_CARS = {"b0c9d2329ad1606b": "Toyota RAV4", "99c94dc769b5d96e": "Honda Civic"}


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """Read segments.

    Each log has the one track ``ego`` of the camera, without a size, and `SIGNALS`: name to
    ``stamps`` (K,) int64 ns, ``values`` (K,) or (K, columns) float64 and ``columns``. A missing
    signal is left out. The metadata give the origin (``ecef_origin`` m, ``latitude`` and
    ``longitude`` rad) and the GPS week and second of the first stamp.

    Args:
        path: a segment, or a folder of routes or segments.
        on_fault: told of a segment, or a signal, that cannot be read.
    """
    path = Path(path).absolute()
    folders = _find(path)
    if not folders:
        on_fault(DatasetError(f"{path} holds no segment of comma2k19, a folder with global_pose"))
    for folder in folders:
        try:
            log = _read_segment(folder.parent, on_fault)
        except DatasetError as fault:
            on_fault(fault)
        else:
            yield log


@os_errors_are_faults()
def _find(path: Path) -> list[Path]:
    if (path / "global_pose").is_dir():
        return [path / "global_pose"]
    found = [folder for folder in path.rglob("global_pose") if folder.is_dir()]
    return sorted(found, key=lambda folder: (folder.parts[:-2], folder.parts[-2].zfill(4)))


def _read_segment(segment: Path, on_fault: OnFault) -> DrivingLog:
    poses = segment / "global_pose"
    stamps = _stamps(poses / "frame_times")
    ecef = _array(poses / "frame_positions", (len(stamps), 3))
    orientation = _array(poses / "frame_orientations", (len(stamps), 4))
    velocity = _array(poses / "frame_velocities", (len(stamps), 3))
    gps = _array(poses / "frame_gps_times", (len(stamps), 2))
    if not len(stamps):
        raise DatasetError(f"{poses} holds no pose")
    if not (np.abs(np.concatenate([ecef, orientation, velocity], axis=1)) < 1e8).all():
        raise DatasetError(f"{poses} has poses that are not finite, or far from the earth")
    if not (np.abs(np.linalg.norm(orientation, axis=1) - 1) < 0.01).all():
        raise DatasetError(f"{poses}/frame_orientations are no quaternions of length 1")
    if not (np.abs(np.linalg.norm(ecef, axis=1) - 6.37e6) < 1e5).all():
        raise DatasetError(f"{poses}/frame_positions are not on the earth")
    latitude, longitude = _geodetic(ecef[0])
    enu = _enu_axes(latitude, longitude)
    forward = _forward(orientation) @ enu.T
    ego = Track(
        kind="vehicle",
        position=(ecef - ecef[0]) @ enu.T,
        heading=np.arctan2(forward[:, 1], forward[:, 0]),
        velocity=(velocity @ enu.T)[:, :2],
        size=np.full(3, np.nan),
        valid=np.ones(len(stamps), np.bool_),
        category=_CARS.get(segment.parent.name[:16], "car"),
    )
    return DrivingLog(
        name=f"{segment.parent.name}/{segment.name}",
        source="comma2k19",
        frame="east, north, up about the first position of the camera, m",
        stamps=stamps,
        ego="ego",
        tracks={"ego": ego},
        signals=dict(_signals(segment, on_fault)),
        metadata={
            "ecef_origin": ecef[0].tolist(),
            "latitude": latitude,
            "longitude": longitude,
            "gps_week": float(gps[0, 0]),
            "gps_second_of_week": float(gps[0, 1]),
        },
    )


def _signals(segment: Path, on_fault: OnFault) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (place, factor, columns) in SIGNALS.items():
        folder = segment / "processed_log" / place
        try:
            with os_errors_are_faults():
                if not folder.is_dir():
                    continue
            stamps = _stamps(folder / "t")
            values = _array(folder / "value", (len(stamps), len(columns)))
        except DatasetError as fault:
            on_fault(fault)
            continue
        named = [index for index, column in enumerate(columns) if column]
        values = values[:, 0] if len(columns) == 1 else values[:, named]
        yield (
            name,
            {
                "stamps": stamps,
                "values": values * factor,
                "columns": [columns[index] for index in named],
            },
        )


def _stamps(path: Path) -> NDArray[np.int64]:
    seconds = _array(path, None)
    if seconds.ndim != 1 or not (np.abs(seconds) < 1e9).all():
        raise DatasetError(f"{path} is of shape {seconds.shape}; expected seconds (N,)")
    stamps: NDArray[np.int64] = np.round(seconds * 1e9).astype(np.int64)
    return stamps


def _array(path: Path, shape: tuple[int, int] | None) -> NDArray[np.float64]:
    """The numbers in a ``.npy`` file, of `shape` or, for one column, without the second axis."""
    found = read_npy(path)
    if found.dtype.kind not in "fiu":
        raise DatasetError(f"{path} holds {found.dtype}; expected numbers")
    values: NDArray[np.float64] = found.astype(np.float64)
    if shape is not None and shape[1] == 1 and values.ndim == 1:
        values = values[:, None]
    if shape is not None and values.shape != shape:
        raise DatasetError(f"{path} is of shape {found.shape}; expected {shape}")
    return values


def _forward(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the first axis points to when turned by quaternions (N, 4), w first: (N, 3)."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1)


def _geodetic(ecef: NDArray[np.float64]) -> tuple[float, float]:
    """Latitude and longitude in rad on the WGS 84 ellipsoid, after Bowring (1976)."""
    a, b = 6378137.0, 6356752.314245
    x, y, z = ecef.tolist()
    radius = math.hypot(x, y)
    reduced = math.atan2(z * a, radius * b)
    latitude = math.atan2(
        z + (a * a / b - b) * math.sin(reduced) ** 3,
        radius - (a - b * b / a) * math.cos(reduced) ** 3,
    )
    return latitude, math.atan2(y, x)


def _enu_axes(latitude: float, longitude: float) -> NDArray[np.float64]:
    """East, north and up in ECEF: the rows of (3, 3)."""
    sin, cos, sinl, cosl = (f(a) for a in (latitude, longitude) for f in (math.sin, math.cos))
    return np.array(
        [[-sinl, cosl, 0], [-sin * cosl, -sin * sinl, cos], [cos * cosl, cos * sinl, sin]]
    )
