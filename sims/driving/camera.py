"""Pinhole cameras on a vehicle.

The vehicle frame is x forward, y left, z up, m, its origin on the ground under the middle of the
rear axle. Pixels are (u, v) to the right and downwards; the center of the upper left one is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.driving.poses import Pose

__all__ = ["FULL_SIZE", "NEAR", "SMALL_SIZE", "Camera", "front_views", "scene_to_vehicle"]

NEAR = 0.1  # m along the optical axis, nearer is not seen
FULL_SIZE, SMALL_SIZE = (972, 1079), (243, 270)  # width and height of WOD-E2E's front cameras

# Camera axes x right, y down, z forward (OpenCV) in those of x forward, y left, z up (Waymo).
OPENCV_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, fixed to a vehicle.

    Attributes:
        name: as in ``observation.images.<name>``.
        width, height: of its pictures, pixels.
        fx, fy: focal lengths, pixels.
        cx, cy: principal point, pixels.
        position: of its center in the vehicle frame, m.
        yaw: of its optical axis, rad, positive to the left.
        pitch: rad, positive downwards (right-handed about the y axis); there is no roll.

    Raises:
        ValueError: for sizes and focal lengths that are not positive, or what is not finite.
    """

    name: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    position: tuple[float, float, float]
    yaw: float = 0.0
    pitch: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", tuple(map(float, self.position)))
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.position, self.yaw, self.pitch)
        if len(self.position) != 3 or not np.isfinite(numbers).all():
            raise ValueError(
                f"camera {self.name!r}: expected finite numbers and 3 of position, got {numbers}"
            )
        if min(self.width, self.height, self.fx, self.fy) <= 0:
            raise ValueError(
                f"camera {self.name!r}: width, height, fx and fy must be positive, got "
                f"{self.width}, {self.height}, {self.fx}, {self.fy}"
            )

    def matrix(self) -> NDArray[np.float64]:
        """(3, 3) intrinsics of OpenCV's axes: pixel = matrix @ point, divided by its depth."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def extrinsics(self) -> NDArray[np.float64]:
        """(4, 4) camera to vehicle; camera axes x forward, y left, z up, as Waymo's."""
        c, s = np.cos([self.yaw, self.pitch]), np.sin([self.yaw, self.pitch])
        pose = np.eye(4)
        pose[:3, :3] = np.array([[c[0], -s[0], 0], [s[0], c[0], 0], [0, 0, 1]]) @ np.array(
            [[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]]
        )
        pose[:3, 3] = self.position
        return pose

    def extrinsics_opencv(self) -> NDArray[np.float64]:
        """(4, 4) camera to vehicle; camera axes x right, y down, z forward, as OpenCV's."""
        pose: NDArray[np.float64] = self.extrinsics() @ OPENCV_AXES
        return pose

    def projection(self) -> NDArray[np.float64]:
        """(3, 4) from (x, y, z, 1) in the vehicle frame to (u, v, 1) times the depth."""
        projection: NDArray[np.float64] = (
            self.matrix() @ np.linalg.inv(self.extrinsics_opencv())[:3]
        )
        return projection

    def project(
        self, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where points (N, 3) of the vehicle frame are seen.

        Returns:
            Pixels (N, 2), in the picture or beside it, nan for points before the near plane; and
            their depths (N,) along the optical axis, m, negative behind the camera.
        """
        projection = self.projection()
        *uv, depth = projection[:, :3] @ np.asarray(points, float).T + projection[:, 3:]
        seen = np.where(depth >= NEAR, depth, np.nan)
        return np.stack(uv, -1) / seen[:, None], depth

    def frustum(self, margin: float = 0.0) -> NDArray[np.float64]:
        """(5, 4) planes of the vehicle frame around what it sees: near, left, right, top, bottom.

        A point is seen where ``plane @ (x, y, z, 1) >= 0`` for all of them.

        Args:
            margin: pixels that count as seen beside each side of the picture.
        """
        u, v, depth = self.projection()
        planes = [
            depth - [0, 0, 0, NEAR],
            u + margin * depth,
            (self.width - 1 + margin) * depth - u,
            v + margin * depth,
            (self.height - 1 + margin) * depth - v,
        ]
        return np.stack(planes)

    def resized(self, width: int, height: int) -> Camera:
        """The same view in pictures of another size."""
        right, down = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * right,
            fy=self.fy * down,
            cx=(self.cx + 0.5) * right - 0.5,
            cy=(self.cy + 0.5) * down - 0.5,
        )


def front_views(size: tuple[int, int] = FULL_SIZE) -> tuple[Camera, ...]:
    """``front_left``, ``front`` and ``front_right``, after WOD-E2E's upright front cameras.

    WOD-E2E gives each frame a calibration of its own. These stand for them all: level cameras on
    the roof, 45 degrees apart, which see 48 degrees each, the horizon at two thirds of the height.

    Args:
        size: width and height in pixels, by default as recorded; `SMALL_SIZE` is a quarter of it.
    """
    width, height = FULL_SIZE
    return tuple(
        Camera(
            name, width, height, 1100.0, 1100.0, (width - 1) / 2, 731.0, (1.5, left, 2.1), yaw
        ).resized(*size)
        for name, left, yaw in (
            ("front_left", 0.1, np.pi / 4),
            ("front", 0.0, 0.0),
            ("front_right", -0.1, -np.pi / 4),
        )
    )


def scene_to_vehicle(pose: Pose) -> NDArray[np.float64]:
    """(4, 4) from the scene's frame, with z = 0 on the ground, to that of the vehicle at `pose`."""
    c, s = np.cos(pose.heading), np.sin(pose.heading)
    x, y = c * pose.x + s * pose.y, c * pose.y - s * pose.x
    return np.array([[c, s, 0, -x], [-s, c, 0, -y], [0, 0, 1, 0], [0, 0, 0, 1]])
