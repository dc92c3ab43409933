"""Schematic pictures from cameras on a vehicle: flat roads and shaded boxes in right perspective.

The ground is level, and it and the road users are painted from far to near in plain colors, a box
darker on the sides than on the top. What is alike in the world looks alike in every picture: there
is no light, no weather and no chance.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.driving import colors
from fastloop.sims.driving.camera import Camera, scene_to_vehicle
from fastloop.sims.driving.ground import LAYERS, Ground, placed
from fastloop.sims.driving.motion import REAR_AXLE
from fastloop.sims.driving.occlusion import beyond_sides, far_to_near
from fastloop.sims.driving.polygons import clip, firsts
from fastloop.sims.driving.poses import rear_axle_pose
from fastloop.sims.driving.scene import Body, Moment, Surroundings

__all__ = ["SIGHT", "paint"]

SIGHT = 120.0  # m along the optical axis; what lies wholly farther is not painted
MARGIN = 64.0  # pixels beside the picture, where polygons are cut off
SUBPIXEL_BITS = 4

# Pictures are painted in one byte a pixel: places in the palette. Each kind of body has one color
# for its left, rear, right and front sides and its top.
SHADES = (0.72, 0.56, 0.66, 0.84, 1.0)
SKY, LAND, FIRST_LAYER = 0, 1, 2
FIRST_BODY = {
    kind: FIRST_LAYER + len(LAYERS) + len(SHADES) * i for i, kind in enumerate(colors.BODIES)
}
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[SKY], PALETTE[LAND] = colors.SKY, colors.LAND
PALETTE[FIRST_LAYER : FIRST_LAYER + len(LAYERS)] = [colors.LAYERS[layer] for layer in LAYERS]
for _kind, _first in FIRST_BODY.items():
    PALETTE[_first : _first + len(SHADES)] = np.outer(SHADES, colors.BODIES[_kind])


def paint(
    camera: Camera,
    surroundings: Surroundings | Ground,
    moment: Moment,
    *,
    rear_axle: float | None = None,
) -> NDArray[np.uint8]:
    """What a camera on the driven vehicle sees; the vehicle itself is not in the picture.

    Args:
        camera: in the vehicle's frame.
        surroundings: of the scene; a `Ground` of them where many pictures are made of one scene.
        moment: who is where.
        rear_axle: m from the middle of the vehicle's box back to its rear axle, where the camera's
            frame begins; by default estimated from the vehicle's length.

    Returns:
        (3, H, W) uint8 RGB; the same for the same scene, on every call.

    Raises:
        ValueError: for shapes and bodies that are not finite.
    """
    cv2 = require("cv2", extra="data")
    ground = Ground.of(surroundings)
    ego = placed(moment.ego, "the driven vehicle")
    behind = REAR_AXLE * ego.length if rear_axle is None else rear_axle
    to_vehicle = scene_to_vehicle(rear_axle_pose(ego, behind))
    projection, planes = camera.projection() @ to_vehicle, camera.frustum(MARGIN) @ to_vehicle
    sight = np.array([0, 0, 0, SIGHT]) - projection[2]
    reach = np.vstack([planes, sight])

    canvas = _backdrop(camera).copy()
    flat = np.array([0, 1, 3])
    points, counts, layers = ground.inside(reach[:, flat])
    points, counts, kept = clip(points, counts, planes[:, flat])
    for polygon, layer in zip(
        _pixels(points, counts, projection[:, flat]), layers[kept].tolist(), strict=True
    ):
        # One call for each: within a call, what two polygons share is a hole.
        cv2.fillPoly(canvas, [polygon], FIRST_LAYER + layer, cv2.LINE_8, SUBPIXEL_BITS)

    eye = (np.linalg.inv(to_vehicle) @ [*camera.position, 1])[:3]
    faces, shades = _faces(_seen(moment, reach), eye)
    counts = np.full(len(faces), 4)
    points, counts, kept = clip(faces.reshape(-1, 3), counts, planes)
    for polygon, shade in zip(
        _pixels(points, counts, projection), shades[kept].tolist(), strict=True
    ):
        cv2.fillConvexPoly(canvas, polygon, shade, cv2.LINE_8, SUBPIXEL_BITS)
    return np.stack([cv2.LUT(canvas, channel) for channel in PALETTE.T.copy()])


@lru_cache(maxsize=16)
def _backdrop(camera: Camera) -> NDArray[np.uint8]:
    """(H, W) sky above the horizon, land below."""
    up = camera.extrinsics_opencv()[2, :3] @ np.linalg.inv(camera.matrix())
    heights = up[1] * np.arange(camera.height) + up[2]
    rows = np.where(heights >= 0, SKY, LAND).astype(np.uint8)
    return np.repeat(rows[:, None], camera.width, 1)


def _pixels(
    points: NDArray[np.float64], counts: NDArray[np.int64], projection: NDArray[np.float64]
) -> list[NDArray[np.int32]]:
    """Clipped polygons as OpenCV takes them, in fractions of pixels."""
    seen = points @ projection[:, :-1].T + projection[:, -1]
    pixels = np.rint(seen[:, :2] / seen[:, 2:] * 2**SUBPIXEL_BITS).astype(np.int32)
    starts = firsts(counts)
    return [pixels[i:j] for i, j in zip(starts.tolist(), (starts + counts).tolist(), strict=True)]


def _seen(moment: Moment, planes: NDArray[np.float64]) -> list[Body]:
    """The others whose boxes lie not wholly beyond any of `planes` (K, 4)."""
    bodies = [placed(body, f"road user {who}") for who, body in moment.others.items()]
    boxes = np.array([[b.x, b.y, b.height / 2, b.length, b.width, b.height] for b in bodies])
    boxes = boxes.reshape(-1, 6)
    radius = np.linalg.norm(boxes[:, 3:], axis=-1, keepdims=True) / 2
    reach = boxes[:, :3] @ planes[:, :3].T + radius * np.linalg.norm(planes[:, :3], axis=-1)
    return [bodies[i] for i in np.flatnonzero((reach + planes[:, 3] >= 0).all(1))]


def _faces(
    bodies: list[Body], eye: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The faces of boxes that are turned to the eye (3,), those that hide others after them.

    Returns:
        (F, 4, 3) corners in the scene's frame, and (F,) places in the palette.
    """
    footprints = np.array([body.corners() for body in bodies]).reshape(-1, 4, 2)
    order = far_to_near(footprints, eye[:2])
    footprints, bodies = footprints[order], [bodies[i] for i in order]
    heights = np.array([body.height for body in bodies])
    first = np.array([FIRST_BODY.get(body.kind, FIRST_BODY["other"]) for body in bodies], int)

    low = np.pad(footprints, ((0, 0), (0, 0), (0, 1)))
    high = low + [0, 0, 1] * heights[:, None, None]
    next_low, next_high = np.roll(low, -1, 1), np.roll(high, -1, 1)
    sides = np.stack([low, next_low, next_high, high], 2)  # (K, 4 sides, 4 corners, 3)
    faces = np.concatenate([sides, high[:, None]], 1)
    turned = np.column_stack(
        [beyond_sides(footprints, eye[None, :2])[..., 0] > 0, eye[2] > heights]
    )
    shades = first[:, None] + np.arange(len(SHADES))
    return faces[turned], shades[turned]
