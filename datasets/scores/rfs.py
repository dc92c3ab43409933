"""The Rater Feedback Score of the Waymo end-to-end driving challenge.

People rated up to three trajectories of a frame from 0 to 10. A proposal earns the score of the
rated trajectory it lies beside at 3 s and at 5 s, fading with the distance outside a trust region
that grows with speed. It follows ``rater_feedback_utils.py`` of the Waymo Open Dataset, to the last
bit. Where readers of the rules go wrong:

- The best rated trajectory is chosen at 3 s and at 5 s separately; only the trust region asks for
  the same one at both.
- Proposals outside all trust regions get no less than 4; proposals inside get what they earn.
- A rated trajectory that ends early is parked at its last point. Where it stands still, the axes of
  its trust region are those of its last movement, or the vehicle's if it has not moved yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["rater_feedback_score", "trust_region_thresholds"]

SCORED_SECONDS = np.array([3, 5])
BASE_THRESHOLDS = np.array([1.0, 1.8])  # m, at the scored seconds
SLOW, FAST = 1.4, 11  # m/s: trust regions are half as large at SLOW as at FAST


def rater_feedback_score(
    inference_trajectories: ArrayLike,
    inference_probs: ArrayLike,
    rater_specified_trajectories: Sequence[Sequence[ArrayLike]],
    rater_feedback_labels: Sequence[ArrayLike],
    init_speed: ArrayLike,
    lat_lng_threshold_multipliers: tuple[float, float] = (1.0, 4.0),
    decay_factor: float = 0.1,
    frequency: int = 4,
    length_seconds: int = 5,
    default_num_of_rater_specified_trajectories: int = 3,
    output_trust_region_visualization: bool = False,
    minimum_score_outside_trust_region: float = 4.0,
) -> dict[str, NDArray[Any]]:
    """Score B frames with I weighted proposals each; a drop-in for ``get_rater_feedback_score``.

    Inputs are not modified. Arithmetic is in the type of the inputs: give float64, since float32
    moves the seventh decimal.

    Args:
        inference_trajectories: (B, I, T, 2) m, x forward and y left of the present rear axle, point
            k at (k + 1) / `frequency` s; T = `frequency` * `length_seconds`.
        inference_probs: (B, I) weights of the proposals; used as they are.
        rater_specified_trajectories: for each frame its rated trajectories, each (n, 2) m, n >= 1;
            cut or parked to T points.
        rater_feedback_labels: for each frame their scores, 0 to 10.
        init_speed: (B,) m/s.
        lat_lng_threshold_multipliers: half width and half length of a trust region, over (1.0, 1.8)
            m at (3, 5) s.
        decay_factor: what is left of a score one threshold beyond the trust region.
        frequency: points a second.
        length_seconds: duration of the trajectories.
        default_num_of_rater_specified_trajectories: P; only the first P count, and the last one is
            repeated where there are fewer.
        output_trust_region_visualization: add the trust regions, each (B, P, 2) or (B, 2) at
            (3, 5) s: ``trust_region_center_x``, ``_center_y``, ``_width`` (along the movement),
            ``_height`` (across), in m, and ``_angle`` in degrees.
        minimum_score_outside_trust_region: floor of proposals outside all trust regions.

    Returns:
        ``rater_feedback_score`` (B,), ``is_fully_within_trust_region`` (B, I) bool,
        ``rater_specified_trajectories`` (B, P, T, 2) and ``rater_feedback_labels`` (B, P) as used.

    Raises:
        DatasetError: shapes do not fit, something is not finite, a frame has no rated trajectory,
            or a score is not in 0..10 (Waymo marks frames that nobody rated with -1).
    """
    T = frequency * length_seconds
    if length_seconds < SCORED_SECONDS[-1]:
        raise DatasetError(f"trajectories of {length_seconds} s, but the score looks at 5 s")
    proposals = _finite("inference_trajectories", inference_trajectories)
    if proposals.ndim != 4 or proposals.shape[2:] != (T, 2):
        raise DatasetError(
            f"inference_trajectories have shape {proposals.shape}, expected (B, I, {T}, 2): "
            f"{length_seconds} s at {frequency} Hz"
        )
    B, I = proposals.shape[:2]  # noqa: E741
    probs = _finite("inference_probs", inference_probs)
    if probs.shape != (B, I):
        raise DatasetError(f"inference_probs have shape {probs.shape}, expected {(B, I)}")
    speed = _finite("init_speed", init_speed)
    if speed.shape != (B,):
        raise DatasetError(f"init_speed has shape {speed.shape}, expected {(B,)}")
    raters, scores = _rectangular(
        rater_specified_trajectories,
        rater_feedback_labels,
        (B, default_num_of_rater_specified_trajectories, T),
    )

    scored = SCORED_SECONDS * frequency - 1
    dx, dy = _directions(raters, scored)  # (B, P, 2)
    length = np.sqrt(dx * dx + dy * dy)
    ux, uy = (dx / length)[:, :, None], (dy / length)[:, :, None]
    apart = proposals[:, None, :, scored] - raters[:, :, None, scored]  # (B, P, I, 2, 2)
    along = np.abs(ux * apart[..., 0] + uy * apart[..., 1])
    across = np.abs(-uy * apart[..., 0] + ux * apart[..., 1])

    half_width, half_length = trust_region_thresholds(speed, lat_lng_threshold_multipliers)
    distance = np.maximum(
        along / half_length[:, None, None], across / half_width[:, None, None]
    )  # (B, P, I, 2), 1 at the border
    inside = (distance <= 1).all(axis=3).any(axis=1)
    faded = scores[..., None, None] * decay_factor ** np.maximum(distance - 1, 0)
    earned = faded.max(axis=1).mean(axis=-1)  # (B, I)
    earned = np.where(inside, earned, np.maximum(minimum_score_outside_trust_region, earned))

    result = {
        "is_fully_within_trust_region": inside,
        "rater_feedback_score": np.sum(earned * probs, axis=-1),
        "rater_specified_trajectories": raters,
        "rater_feedback_labels": scores,
    }
    if output_trust_region_visualization:
        result |= {
            "trust_region_center_x": raters[:, :, scored, 0],
            "trust_region_center_y": raters[:, :, scored, 1],
            "trust_region_width": 2 * half_length,
            "trust_region_height": 2 * half_width,
            "trust_region_angle": np.degrees(np.arctan2(dy, dx)),
        }
    return result


def trust_region_thresholds(
    init_speed: ArrayLike, lat_lng_threshold_multipliers: tuple[float, float] = (1.0, 4.0)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half width and half length (B, 2), m, of the trust regions at 3 s and 5 s for `init_speed`
    (B,), m/s."""
    speed = np.asarray(init_speed)
    scale = np.clip(0.5 + 0.5 * (speed - SLOW) / (FAST - SLOW), 0.5, 1.0)[..., None]
    lateral, longitudinal = lat_lng_threshold_multipliers
    return scale * (BASE_THRESHOLDS * lateral), scale * (BASE_THRESHOLDS * longitudinal)


def _directions(raters: NDArray[Any], at: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The last movement up to the points `at`, (1, 0) before any: dx, dy, each (B, P, len(at))."""
    steps = np.diff(raters, axis=2, prepend=np.zeros_like(raters[:, :, :1]))
    # Whether the square is zero, as the original asks: tiny steps underflow to standing still.
    moved = np.sum(steps * steps, axis=-1) > 0
    latest = np.maximum.accumulate(np.where(moved, np.arange(raters.shape[2]), -1), axis=2)[..., at]
    movement = np.take_along_axis(steps, np.maximum(latest, 0)[..., None], axis=2)
    movement = np.where((latest < 0)[..., None], np.array([1, 0], raters.dtype), movement)
    return movement[..., 0], movement[..., 1]


def _rectangular(
    trajectories: Sequence[Sequence[ArrayLike]],
    labels: Sequence[ArrayLike],
    shape: tuple[int, int, int],
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Ragged ratings as (B, P, T, 2) points and (B, P) scores."""
    B, P, T = shape
    if (len(trajectories), len(labels)) != (B, B):
        raise DatasetError(
            f"rated trajectories of {len(trajectories)} frames, labels of {len(labels)} frames, "
            f"proposals of {B} frames: expected as many"
        )
    rated = []
    scores = np.empty((B, P))
    for b, (frame, given) in enumerate(zip(trajectories, labels, strict=True)):
        label = _finite(f"frame {b}: labels", given)
        if not len(frame) or label.shape != (len(frame),):
            raise DatasetError(
                f"frame {b}: {len(frame)} rated trajectories with labels of shape {label.shape}, "
                "expected one or more with a label each"
            )
        if not ((label >= 0) & (label <= 10)).all():
            raise DatasetError(
                f"frame {b}: labels {label.tolist()}, expected scores of 0 to 10; leave out frames "
                "that nobody rated, whose labels are -1"
            )
        kept = [
            _finite(f"frame {b}, rated trajectory {p}", trajectory)
            for p, trajectory in enumerate(frame[:P])
        ]
        for p, trajectory in enumerate(kept):
            if trajectory.ndim != 2 or trajectory.shape[1] != 2 or not len(trajectory):
                raise DatasetError(
                    f"frame {b}, rated trajectory {p} has shape {trajectory.shape}, "
                    "expected (n, 2) with n >= 1"
                )
        last = len(kept) - 1
        rated.append([kept[min(p, last)] for p in range(P)])
        scores[b] = label[[min(p, last) for p in range(P)]]

    kinds = {trajectory.dtype for frame in rated for trajectory in frame}
    points = np.empty((B, P, T, 2), np.result_type(*kinds) if kinds else np.float64)
    for b, frame in enumerate(rated):
        for p, trajectory in enumerate(frame):
            points[b, p, : len(trajectory)] = trajectory[:T]
            points[b, p, len(trajectory) :] = trajectory[-1]
    return points, scores


def _finite(what: str, values: ArrayLike) -> NDArray[Any]:
    """`values` as an array of their floating type, whole numbers as float64."""
    try:
        array = np.asarray(values)
        if not np.issubdtype(array.dtype, np.floating):
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{what} are no numbers of one shape: {error}") from error
    if not np.isfinite(array).all():
        raise DatasetError(f"{what} hold nan or inf")
    return array
