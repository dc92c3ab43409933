"""A drive from above, for people: roads, boxes, the plan and the way driven so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.driving import colors
from fastloop.sims.driving.ground import FARTHEST, LAYERS, Ground, placed
from fastloop.sims.driving.polygons import clip, firsts
from fastloop.sims.driving.scene import Body, Moment, Surroundings

__all__ = ["birds_eye"]

SUBPIXEL_BITS = 4
OUTLINE = (25, 25, 28)


def birds_eye(
    surroundings: Surroundings | Ground,
    moment: Moment,
    size: tuple[int, int] = (480, 480),
    reach_m: float = 40.0,
    *,
    plan: NDArray[np.float64] | None = None,
    trail: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """The scene around the driven vehicle, which is in the middle and points upwards.

    Args:
        surroundings: of the scene; a `Ground` of them where many pictures are made of one scene.
        moment: who is where.
        size: height and width, pixels.
        reach_m: m from the middle to the nearer edges of the picture.
        plan: (T, 2) waypoints in the scene's frame, drawn as dots on a line from the vehicle.
        trail: (N, 2) where the vehicle has been, in the scene's frame, drawn as a line.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: for what is not finite or of another shape, and a picture of no size.
    """
    cv2 = require("cv2", extra="data")
    if min(size) < 1 or not reach_m > 0:
        raise ValueError(f"a picture of {size} pixels that reaches {reach_m} m shows nothing")
    ground, ego = Ground.of(surroundings), placed(moment.ego, "the driven vehicle")
    others = [placed(body, f"road user {who}") for who, body in moment.others.items()]
    scale = min(size) / 2 / reach_m
    to_pixels = _to_pixels(ego, size, scale)
    edges = _edges(to_pixels, size)

    picture = np.full((*size, 3), colors.LAND, np.uint8)
    style = {"lineType": cv2.LINE_AA, "shift": SUBPIXEL_BITS}
    points, counts, layers = ground.inside(edges)
    points, counts, kept = clip(points, counts, edges)
    pixels, starts = _fractions(points, to_pixels), firsts(counts)
    for start, count, layer in zip(starts, counts, layers[kept], strict=True):
        outline = pixels[start : start + count]
        cv2.fillPoly(picture, [outline], colors.LAYERS[LAYERS[layer]], **style)

    def line(points: NDArray[np.float64], color: tuple[int, int, int], dots: bool) -> None:
        path = _fractions(points, to_pixels)
        cv2.polylines(picture, [path], False, color, 2, **style)
        for dot in path[1:] if dots else ():
            cv2.circle(picture, dot.tolist(), 3 << SUBPIXEL_BITS, color, cv2.FILLED, **style)

    if trail is not None:
        line(_way(trail, "trail"), colors.TRAIL, False)
    for body, color in [
        *((body, colors.BODIES.get(body.kind, colors.BODIES["other"])) for body in others),
        (ego, colors.EGO),
    ]:
        box = _fractions(body.corners(), to_pixels)
        cv2.fillConvexPoly(picture, box, color, **style)
        cv2.polylines(picture, [box], True, OUTLINE, 1, **style)
        middle, front = body.corners().mean(0), body.corners()[[0, 3]].mean(0)
        nose = _fractions(np.stack([middle, front]), to_pixels)
        cv2.polylines(picture, [nose], False, OUTLINE, 1, **style)
    if plan is not None:
        line(np.vstack([[ego.x, ego.y], _way(plan, "plan")]), colors.PLAN, True)
    return picture


def _to_pixels(ego: Body, size: tuple[int, int], scale: float) -> NDArray[np.float64]:
    """(2, 3) from (x, y, 1) in the scene's frame to pixels to the right and downwards."""
    c, s = np.cos(ego.heading), np.sin(ego.heading)
    turn = scale * np.array([[s, -c], [-c, -s]])
    middle = (np.array([size[1], size[0]]) - 1) / 2
    return np.column_stack([turn, middle - turn @ [ego.x, ego.y]])


def _edges(to_pixels: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(4, 3) half-planes of the scene's frame around the picture and a few pixels more."""
    u, v = to_pixels
    one, margin = np.array([0, 0, 1]), 8
    return np.stack(
        [
            u + margin * one,
            (size[1] + margin) * one - u,
            v + margin * one,
            (size[0] + margin) * one - v,
        ]
    )


def _fractions(points: NDArray[np.float64], to_pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """(N, 2) as OpenCV takes them, in fractions of pixels; far outside of the picture, it ends."""
    pixels = np.clip(points @ to_pixels[:, :2].T + to_pixels[:, 2], -1e5, 1e5)
    fractions: NDArray[np.int32] = np.rint(pixels * 2**SUBPIXEL_BITS).astype(np.int32)
    return fractions


def _way(points: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    way = np.asarray(points, float)
    if way.ndim != 2 or way.shape[1] != 2 or not np.isfinite(way).all():
        raise ValueError(f"the {what} has shape {way.shape}, expected (N, 2) finite numbers")
    return np.clip(way, -FARTHEST, FARTHEST)
