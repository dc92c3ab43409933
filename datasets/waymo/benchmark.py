"""The end-to-end driving challenge of the Waymo Open Dataset, as a benchmark on its frames."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Metric, Moment, Shape
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.ade import ade, top_rated
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.datasets.scores.rfs import rater_feedback_score
from fastloop.datasets.waymo.frames import FUTURE, PAST, Frame
from fastloop.datasets.waymo.shards import Place, index
from fastloop.datasets.waymo.submission import read_frames

__all__ = ["CLUSTERS", "REFERENCES", "WodE2E"]

CLUSTERS = "val_sequence_name_to_scenario_cluster.json"
REFERENCES = {
    "top_rated": "the trajectory that the raters scored highest, the first of equals (official)",
    "log": "what the recorded vehicle did",
    "none": "nothing: plans are only made, for the frames whose future is withheld",
}
FRAMES_HELD = 4096  # some 10 kB each, without their pictures


class WodE2E:
    """WOD-E2E as a `Benchmark`: the Rater Feedback Score, and displacement at 3 s and 5 s.

    With the reference ``top_rated`` its samples are the frames that people rated (one of each
    sequence of ``val``); with ``log`` those whose future is known, and RFS is of the rated ones
    among them; with ``none`` all of them, to plan for a submission of ``test``. Frames are read and
    checked when they are asked for, so the folder may be larger than memory.
    """

    name: str
    steps = FUTURE
    hz = 4.0
    frame = (
        "middle of the rear axle, in the vehicle's present frame: x forward, y left, m; "
        "the first waypoint is for 0.25 s from now"
    )

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "val",
        clusters: str | Path | None = None,
        reference: str = "top_rated",
        frames: str | Path | None = None,
        cache: str | Path | None = None,
        verify: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Find the frames of a split.

        Args:
            root: a folder of shards, or one shard, whatever its name.
            split: how the names of the shards begin; ``*`` for all.
            clusters: JSON of scenario clusters by sequence; None: `CLUSTERS` in the folder, where
                it is there.
            reference: what displacement is from, one of `REFERENCES`.
            frames: file of the only frames that count, as `submission.read_frames` reads it; one
                that is in no shard is a fault.
            cache: folder that keeps the index, see `shards.index`.
            verify: whether each frame that is used is read whole and checked; else only what is
                asked for is read, a few kilobytes without pictures.
            progress: told how many of how many shards are indexed.

        Raises:
            DatasetError: where there is nothing to score, or `clusters` or `frames` cannot be read.
        """
        if reference not in REFERENCES:
            raise DatasetError(f"reference {reference!r}; have: {', '.join(REFERENCES)}")
        root = Path(root)
        self.name = f"WOD-E2E {root.name if root.is_file() else split}"
        self.reference = reference
        self.verify = verify
        faults: list[DatasetError] = []
        self.frames = index(
            root, f"{split}*.tfrecord*", cache=cache, on_fault=faults.append, progress=progress
        )
        self.faults = [str(fault) for fault in faults]
        places = sorted(self.frames.places.values(), key=lambda it: (it.sequence, it.index))
        if frames is not None:
            wanted = set(read_frames(frames))
            absent = sorted(wanted - self.frames.places.keys())
            self.faults += [f"frame {name} of {frames} is in no shard" for name in absent]
            places = [place for place in places if place.name in wanted]
        rated = [place for place in places if place.raters]
        answers: dict[str, list[Place]] = {
            "top_rated": rated, "log": [it for it in places if it.logged], "none": places,
        }  # fmt: skip
        chosen = answers[reference]
        if not chosen:
            raise DatasetError(
                f"{self.name}: none of {len(places)} frames can be scored with reference="
                f"{reference}: {len(rated)} are rated, {sum(it.logged for it in places)} have a "
                "known future (only frames of val are rated, and test has no futures)"
                + "".join(f"\n{fault}" for fault in self.faults[:3])
            )
        self.keys = [place.name for place in chosen]
        self._frame = lru_cache(FRAMES_HELD)(self._read)

        there = (root.parent if root.is_file() else root) / CLUSTERS
        clusters = there if clusters is None and there.is_file() else clusters
        self.clusters = {} if clusters is None else _clusters(Path(clusters))
        scored = [place for place in chosen if place.raters]
        short, trajectories = sum(it.short for it in scored), sum(it.raters for it in scored)
        unknown = sum(place.sequence not in self.clusters for place in scored)
        self.conditions: Mapping[str, str] = {
            "observation.ego_states": "as in the file: in recorded frames a velocity is of the "
            "step ahead, the last repeats the one before, and an acceleration is the change of "
            "velocity in 0.25 s",
            "reference of ade": REFERENCES[reference],
            "samples": f"{len(chosen)} of {len(places)} frames; {len(scored)} of them are rated",
            "short ratings": f"{short} of {trajectories} rated trajectories have fewer than "
            f"{FUTURE} points and are parked at their last one",
            "scenario clusters": f"{clusters}; {unknown} rated frames are in none"
            if self.clusters
            else "unknown",
            "rfs": "mean over frames; rfs_cluster_mean over the means of scenario clusters, as on "
            "the leaderboard",
        }

    @cached_property
    def inputs(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Observation key to shape and dtype; pictures are as large as those of the first frame
        that can be read."""
        inputs: dict[str, tuple[tuple[int, ...], str]] = {
            "observation.ego_states": ((PAST, 6), "float32"),
            "observation.intent": ((), "int64"),
        }
        for key in self.keys:
            try:
                cameras = self._frame(key).cameras
                images = {name: (3, *camera.size()) for name, camera in cameras.items()}
            except DatasetError:
                continue
            return inputs | {
                f"observation.images.{name}": (shape, "uint8") for name, shape in images.items()
            }
        return inputs

    def observe(self, key: str, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The observations `wanted` of frame `key`; only the pictures among them are decoded.

        Raises:
            DatasetError: where it is damaged, or has no such observation.
        """
        frame = self._frame(key)
        return {name: self._observation(frame, name) for name in wanted}

    def _observation(self, frame: Frame, name: str) -> NDArray[Any]:
        if name == "observation.ego_states":
            return frame.past.astype(np.float32)
        if name == "observation.intent":
            return np.array(frame.intent, np.int64)
        camera = frame.cameras.get(name.removeprefix("observation.images."))
        if camera is None or name not in self.inputs:
            raise DatasetError(
                f"frame {frame.name} has no {name!r}; have: {', '.join(self.inputs)}"
            )
        size, expected = camera.size(), self.inputs[name][0][1:]
        if size != expected:
            raise DatasetError(f"{camera.where}: a picture of {size}, expected {expected} pixels")
        return np.ascontiguousarray(camera.pixels().transpose(2, 0, 1))

    def score(self, keys: Sequence[str], plans: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """``rfs`` (nan where nobody rated), ``ade_3s`` and ``ade_5s`` (m) of plans (N, 20, 2); no
        columns without a reference.

        Raises:
            DatasetError: where shapes do not fit, or a plan is not finite.
        """
        plans = np.asarray(plans, np.float64)
        if plans.shape != (len(keys), FUTURE, 2):
            raise DatasetError(
                f"plans of shape {plans.shape} for {len(keys)} frames, expected (N, {FUTURE}, 2)"
            )
        if self.reference == "none":
            return {}
        chosen = [self._frame(key) for key in keys]
        references = [self._reference(frame) for frame in chosen]
        scores = {n: frame.scores for n, frame in enumerate(chosen) if frame.scores is not None}
        rated = list(scores)
        rfs = np.full(len(keys), np.nan)
        if rated:
            rfs[rated] = rater_feedback_score(
                plans[rated, None],
                np.ones((len(rated), 1)),
                [chosen[n].raters for n in rated],
                list(scores.values()),
                np.array([chosen[n].speed for n in rated]),
            )["rater_feedback_score"]
        return {
            "rfs": rfs,
            "ade_3s": ade(plans, references, 3, self.hz),
            "ade_5s": ade(plans, references, 5, self.hz),
        }

    def metrics(
        self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
    ) -> dict[str, Metric]:
        """``rfs``, ``rfs_cluster_mean``, ``rfs_<cluster>`` and the displacements, with intervals by
        a bootstrap over sequences; figures of RFS only where frames are rated, those of clusters
        only where clusters are known."""
        if self.reference == "none":
            return {}
        sequences = np.array([self.frames.places[key].sequence for key in keys])
        rfs = np.asarray(columns["rfs"], np.float64)
        rated = ~np.isnan(rfs)
        figures = {}
        if rated.any():
            figures["rfs"] = _mean(rfs[rated], sequences[rated], "1")
        cluster = np.array([self.clusters.get(sequence, "") for sequence in sequences])
        known = rated & (cluster != "")
        if known.any():
            figures["rfs_cluster_mean"] = _mean(
                rfs[known], sequences[known], "1", clusters=cluster[known]
            )
        for name in np.unique(cluster[known]):
            rows = known & (cluster == name)
            figures[f"rfs_{name}"] = _mean(rfs[rows], sequences[rows], "1")
        for name in ("ade_3s", "ade_5s"):
            figures[name] = _mean(np.asarray(columns[name]), sequences, "m")
        return figures

    def worst(self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """The lowest RFS first; frames that nobody rated follow, the largest displacement first."""
        if self.reference == "none":
            return np.arange(len(keys))
        order: NDArray[np.int64] = np.lexsort((-columns["ade_5s"], columns["rfs"]))
        return order

    def moment(self, key: str) -> Moment:
        """Frame `key`: the way there, the way on, the rated trajectories, the front camera."""
        frame = self._frame(key)
        scores = () if frame.scores is None else frame.scores
        front = frame.cameras.get("front")
        return Moment(
            title=f"sequence {frame.sequence}, frame {frame.index}",
            shapes=(Shape("ego", frame.past[:, :2]),),
            truth=np.empty((0, 2)) if frame.future is None else frame.future[:, :2],
            others={
                f"rater {n}: {score:g}": trajectory[:FUTURE]
                for n, (trajectory, score) in enumerate(zip(frame.raters, scores, strict=True), 1)
            },
            image=None if front is None else front.jpeg(),
        )

    def _reference(self, frame: Frame) -> NDArray[np.float64]:
        if self.reference == "top_rated" and frame.scores is not None:
            return top_rated(frame.raters, frame.scores)
        if self.reference == "log" and frame.future is not None:
            return frame.future[:, :2]
        raise DatasetError(f"frame {frame.name} has no reference={self.reference}")

    def _read(self, key: str) -> Frame:
        if key not in self.frames.places:
            raise DatasetError(f"no frame is called {key!r}; have {self.keys[0]!r} and others")
        return self.frames.places[key].read(verify=self.verify)


def _mean(values: NDArray[np.float64], sequences: NDArray[Any], unit: str, **by: Any) -> Metric:
    value, low, high = mean_interval(values, sequences, **by)
    return Metric(value, unit, int((~np.isnan(values)).sum()), low, high)


def _clusters(path: Path) -> dict[str, str]:
    """Sequence to scenario cluster, in lower case with underscores and Waymo's spelling."""
    try:
        entries = json.loads(path.read_text("utf-8"))
        return {
            sequence: re.sub(r"\W+", "_", entry["scenario_cluster"].lower()).strip("_")
            for sequence, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{path} gives no scenario clusters ({error}); expected JSON of "
            '{sequence: {"scenario_cluster": name}}'
        ) from error
