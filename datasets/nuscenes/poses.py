"""Poses as nuScenes writes them, a translation and a quaternion w, x, y, z, as matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["invert", "lidar_to_vehicle", "pose_matrices", "rotations", "yaws"]


def rotations(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3, 3) of quaternions (..., 4) w, x, y, z, which are normalized first."""
    unit = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(unit, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def pose_matrices(
    translations: NDArray[np.float64], quaternions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, 4, 4) that take points of a body to the frame in which its pose (N, 3), (N, 4) is."""
    poses = np.zeros((*translations.shape[:-1], 4, 4))
    poses[..., :3, :3] = rotations(quaternions)
    poses[..., :3, 3] = translations
    poses[..., 3, 3] = 1
    return poses


def invert(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of rigid poses (..., 4, 4)."""
    inverse = np.zeros_like(poses)
    turned = np.swapaxes(poses[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", turned, poses[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def yaws(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """(...) rad: where the x axis of rotations or poses (..., 3 or 4, 3 or 4) points."""
    return np.arctan2(matrices[..., 1, 0], matrices[..., 0, 0])


def lidar_to_vehicle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 2) of lidar axes (x right, y forward) in vehicle axes (x forward, y left)."""
    return np.stack([points[..., 1], -points[..., 0]], axis=-1)
