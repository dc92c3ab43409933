"""Boxes of what else was on the road, at the times of the waypoints of many samples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = ["Boxes", "from_vad_features"]

FARTHEST = 1e5  # m: coordinates beyond are a mistake, and would not fit the grid's integers
VAD_HUMANS, VAD_VEHICLES = range(2, 9), range(14, 24)


@dataclass(frozen=True)
class Boxes:
    """K boxes in one list; a step without boxes has no rows.

    Attributes:
        sample: (K,) int64 which sample, from 0.
        step: (K,) int64 which waypoint's time, from 0.
        rectangles: (K, 6) x, y of the middle, length, width in m, cosine and sine of the heading;
            in the frame of the plans: x forward and y left of the reference point at present.
        human: (K,) bool: ``human.*`` of nuScenes; the others are ``vehicle.*``, cycles among them.
            (UniAD's table lacks emergency vehicles.)
        known: (K,) bool: the reference whose table is reproduced knew of the object at present.
            VAD, OmniDrive: annotated now, with returns of lidar or radar, and without a gap since;
            ST-P3: annotated now or in the two keyframes before, with a visibility above 40 %.
        about_rear_axle: (K, 6) the same as ST-P3 draws them, about the rear axle with roll and
            pitch neglected; only for its switch ``frame_offset``.
        motion: (N, T, 3) x, y in m and heading in rad of the rear axle at the waypoints' times, in
            its present frame; only for ST-P3's switch ``resampled_grid``, which has no effect
            without it.
    """

    sample: NDArray[np.int64]
    step: NDArray[np.int64]
    rectangles: NDArray[np.floating]
    human: NDArray[np.bool_]
    known: NDArray[np.bool_]
    about_rear_axle: NDArray[np.floating] | None = None
    motion: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        K = len(self.rectangles)
        for name in ("sample", "step", "human", "known"):
            if getattr(self, name).shape != (K,):
                raise DatasetError(f"boxes: {name} {getattr(self, name).shape}, expected ({K},)")
        for name in ("rectangles", "about_rear_axle"):
            if (values := getattr(self, name)) is None:
                continue
            if values.shape != (K, 6):
                raise DatasetError(f"boxes: {name} {values.shape}, expected ({K}, 6)")
            if len(bad := np.flatnonzero(~(np.abs(values) < FARTHEST).all(1))):
                raise DatasetError(f"boxes: {name}, row {bad[0]} holds {values[bad[0]].tolist()}")
        if (motion := self.motion) is not None and not (
            motion.ndim == 3 and motion.shape[2] == 3 and (np.abs(motion) < FARTHEST).all()
        ):
            raise DatasetError(f"boxes: motion {motion.shape}, expected (N, T, 3), all finite")

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes:
        """The boxes of these rows."""
        rear = None if self.about_rear_axle is None else self.about_rear_axle[rows]
        return Boxes(
            self.sample[rows],
            self.step[rows],
            self.rectangles[rows],
            self.human[rows],
            self.known[rows],
            rear,
            self.motion,
        )

    def under(self, faults: Collection[str]) -> Boxes:
        """The boxes as a table with these switches sees them."""
        boxes = self
        if "frame_offset" in faults:
            if self.about_rear_axle is None:
                raise DatasetError("boxes: about_rear_axle is needed for the fault 'frame_offset'")
            boxes = replace(self, rectangles=self.about_rear_axle)
        if not {"cells", "resampled_grid"} <= set(faults):
            boxes = replace(boxes, motion=None)
        seen = np.ones(len(self), bool)
        if "vehicles_only" in faults:
            seen &= ~self.human
        if "late_objects_invisible" in faults:
            seen &= self.known
        return boxes if seen.all() else boxes[seen]


def from_vad_features(boxes: NDArray[np.floating], features: NDArray[np.floating]) -> Boxes:
    """The boxes of one sample from VAD's own arrays, for comparison with its results.

    Follows ``metric_stp3.py:get_birds_eye_view_label``, which alters `boxes`; this does not.

    Args:
        boxes: (A, 9) float32 ``gt_agent_boxes``: x right, y forward, z, width, length, height, yaw
            as mmdet3d has it, velocity.
        features: (A, 34) float32 ``gt_agent_feats``: steps x, y of 6 futures, their masks, goal, 9
            features of which the last is the category, turns of 6 futures.
    """
    if boxes.shape[1:] != (9,) or features.shape != (len(boxes), 34):
        raise DatasetError(
            f"VAD's arrays are {boxes.shape} and {features.shape}, expected (A, 9) and (A, 34)"
        )
    A, T = len(boxes), 6
    right, forward = np.moveaxis(
        np.cumsum(features[:, :12].reshape(A, T, 2), axis=1) + boxes[:, None, :2], -1, 0
    )
    turns = np.cumsum(features[:, 28:34], axis=1)
    yaw = turns + -1 * (boxes[:, 6:7] + np.array(np.pi / 2, boxes.dtype))
    width, length = (np.broadcast_to(boxes[:, None, i], (A, T)) for i in (3, 4))
    # To x forward and y left: a quarter turn, exact.
    rectangles = np.stack([forward, -right, length, width, np.sin(yaw), -np.cos(yaw)], -1)
    category = features[:, 27].astype(np.int64)
    human, vehicle = np.isin(category, VAD_HUMANS), np.isin(category, VAD_VEHICLES)
    agent, step = np.nonzero((features[:, 12:18] == 1) & (human | vehicle)[:, None])
    return Boxes(
        sample=np.zeros(len(agent), np.int64),
        step=step,
        rectangles=rectangles[agent, step],
        human=human[agent],
        known=np.ones(len(agent), bool),
    )
