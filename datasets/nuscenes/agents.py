"""Who else is where at the six keyframes after a sample, as each convention looks at it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.nuscenes.moments import FUTURE
from fastloop.datasets.nuscenes.poses import invert, rotations, yaws
from fastloop.datasets.nuscenes.tables import Tables
from fastloop.datasets.scores.boxes import Boxes

__all__ = ["NEAR_M", "Agents"]

NEAR_M = (30.0, 15.0)
"""How far ahead or behind, and aside, the objects are that VAD's test pipeline keeps."""

_HIDDEN = 1  # visibility: below 40 %
_SEEN_FRAMES = 3  # of ST-P3: now and two before
_PEOPLE_OF_VAD = {
    f"human.pedestrian.{kind}"
    for kind in ("adult", "child", "construction_worker", "police_officer")
}


class Agents:
    """Vehicles and people of a split, to be asked for by samples.

    Args:
        tables: the keyframes.
        near_only: what VAD's published test pipeline does beside its metric: of the objects
            annotated at present it keeps those of its ten classes in a window of 60 m by 30 m.
    """

    def __init__(self, tables: Tables, near_only: bool = False) -> None:
        self.tables, self.near_only = tables, near_only
        names = tables.boxes.categories
        self._human = np.array([name.startswith("human") for name in names], dtype=bool)
        self._vehicle = np.array([name.startswith("vehicle") for name in names], dtype=bool)
        self._emergency = np.array([name.startswith("vehicle.emergency") for name in names], bool)
        self._classed = self._vehicle & ~self._emergency
        self._classed |= np.array([name in _PEOPLE_OF_VAD for name in names], dtype=bool)

    @cached_property
    def _axis(self) -> NDArray[np.float64]:
        """(M, 3) where each box's length points, in the map's frame."""
        return rotations(self.tables.boxes.rotation)[..., 0]

    @cached_property
    def _last(self) -> NDArray[np.int64]:
        """(N,) the last sample of each sample's scene."""
        return np.array([s.last - 1 for s in self.tables.scenes])[self.tables.scene]

    def boxes(self, samples: NDArray[np.int64], convention: str) -> Boxes:
        """The boxes annotated 0.5 s to 3 s after `samples`, about the present LIDAR_TOP.

        Boxes of vehicles and people: of UniAD without emergency vehicles, which its classes lack.
        `known` is as the convention's code has it: ST-P3 knows who was annotated now or in the two
        keyframes before with a visibility above 40 %; VAD (and OmniDrive) who is annotated now
        with a return of lidar or radar, through its chain of boxes.

        Args:
            samples: (N,) indices.
            convention: ``uniad``, ``stp3``, ``vad`` or ``omnidrive``.
        """
        every = self.tables.boxes
        wanted = self._human | (self._classed if convention == "uniad" else self._vehicle)
        ahead = samples[:, None] + np.arange(1, FUTURE + 1)
        there = ahead <= self._last[samples][:, None]
        moment, box = self._annotated(np.where(there, ahead, -1).ravel(), wanted)
        sample, step = np.divmod(moment, FUTURE)
        present = samples[sample]
        known = np.ones(len(box), dtype=bool)
        if convention == "stp3":
            known = self._seen(samples, sample, box)
        elif convention in ("vad", "omnidrive"):
            known = self._followed(samples, sample, step, box)
        rectangles = self._rectangles(invert(self.tables.lidar_pose)[present], box)
        forward_left = rectangles[:, [1, 0, 2, 3, 5, 4]] * [1, -1, 1, 1, 1, -1]
        rear, motion = None, None
        if convention == "stp3":
            rear = self._rectangles(invert(_level(self.tables.ego_pose[present])), box)
            motion = self._motion(samples, np.where(there, ahead, samples[:, None]))
        return Boxes(
            sample=sample,
            step=step,
            rectangles=forward_left,
            human=self._human[every.category[box]],
            known=known,
            about_rear_axle=rear,
            motion=motion,
        )

    def _motion(self, samples: NDArray[np.int64], ahead: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N, 6, 3) x, y and heading of the rear axle at `ahead`, in its frame at `samples`."""
        poses = self.tables.ego_pose
        moved = invert(poses[samples])[:, None] @ poses[ahead]
        # As ST-P3 takes it, which differs from the yaw where the road tilts.
        heading = np.arctan2(-moved[..., 0, 1], moved[..., 0, 0])
        return np.concatenate([moved[..., :2, 3], heading[..., None]], axis=-1)

    def _annotated(
        self, frames: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Boxes of `wanted` categories at `frames` (-1: none): index in `frames`, and box."""
        starts = self.tables.boxes.starts
        counts = np.where(frames >= 0, starts[frames + 1] - starts[frames], 0)
        moment = np.repeat(np.arange(len(frames)), counts)
        within = np.arange(len(moment)) - np.repeat(np.cumsum(counts) - counts, counts)
        box = starts[frames][moment] + within
        kept = wanted[self.tables.boxes.category[box]]
        return moment[kept], box[kept]

    def _rectangles(self, back: NDArray[np.float64], box: NDArray[np.int64]) -> NDArray[np.float64]:
        """(K, 6) x, y, length, width, cosine and sine, each box after its `back` (K, 4, 4)."""
        every = self.tables.boxes
        middle = np.einsum("kij,kj->ki", back[:, :2, :3], every.center[box]) + back[:, :2, 3]
        axis = np.einsum("kij,kj->ki", back[:, :2, :3], self._axis[box])
        axis /= np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-9)
        return np.concatenate([middle, every.size[box][:, :2], axis], axis=-1)

    def _seen(
        self, samples: NDArray[np.int64], sample: NDArray[np.int64], box: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each box's object was seen well, now or in the two keyframes before."""
        every = self.tables.boxes
        first = np.array([s.first for s in self.tables.scenes])[self.tables.scene[samples]]
        before = samples[:, None] - np.arange(_SEEN_FRAMES)
        before = np.where(before >= first[:, None], before, -1)
        moment, seen = self._annotated(before.ravel(), self._human | self._vehicle)
        good = every.visibility[seen] != _HIDDEN
        objects = len(every.instances)
        keys = (moment[good] // _SEEN_FRAMES) * objects + every.instance[seen[good]]
        return np.isin(sample * objects + every.instance[box], keys)

    def _followed(
        self,
        samples: NDArray[np.int64],
        sample: NDArray[np.int64],
        step: NDArray[np.int64],
        box: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Whether the chains of the boxes annotated at `samples` lead to each box at its step."""
        every = self.tables.boxes
        moment, now = self._annotated(samples, self._human | self._vehicle)
        kept = every.lidar_points[now] + every.radar_points[now] > 0
        if self.near_only:
            back = invert(self.tables.lidar_pose)[samples[moment]]
            right, ahead = self._rectangles(back, now)[:, :2].T
            kept &= (abs(ahead) < NEAR_M[0]) & (abs(right) < NEAR_M[1])
            kept &= self._classed[every.category[now]]
        moment, chained = moment[kept], now[kept]
        boxes = len(every.tokens)
        keys = []
        for k in range(FUTURE):
            chained = np.where(chained >= 0, every.following[chained], -1)
            on = chained >= 0
            keys.append((moment[on] * FUTURE + k) * boxes + chained[on])
        return np.isin((sample * FUTURE + step) * boxes + box, np.concatenate(keys))


def _level(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poses (N, 4, 4) with roll and pitch left out."""
    yaw = yaws(poses)
    level = poses.copy()
    level[:, :3, :3] = 0
    level[:, 0, 0] = level[:, 1, 1] = np.cos(yaw)
    level[:, 1, 0] = np.sin(yaw)
    level[:, 0, 1] = -level[:, 1, 0]
    level[:, 2, 2] = 1
    return level
