"""Open-loop planning on nuScenes as a benchmark: plans in, the figures of each convention out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Metric, Moment, Shape
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.agents import NEAR_M, Agents
from fastloop.datasets.nuscenes.maps import NuScenesMap, open_map
from fastloop.datasets.nuscenes.moments import FUTURE, HZ, PAST, ego_motion
from fastloop.datasets.nuscenes.scenes import CAMERAS, NuScenes
from fastloop.datasets.nuscenes.surroundings import plan_poses, surroundings
from fastloop.datasets.scores.boundary import leaves_area
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.datasets.scores.planning import (
    CONVENTIONS,
    DEFINITION,
    FAULTS,
    HORIZONS,
    collisions,
    displacements,
    pool,
)

__all__ = ["PLANNING_FAULTS", "SAMPLES", "NuScenesPlanning"]

SAMPLES = {
    "common": "those with a keyframe before and six after, the same for all conventions",
    "published": "each convention's own: UniAD every one, VAD those with six keyframes after, "
    "ST-P3 those with two before and six after",
}

PLANNING_FAULTS: Mapping[str, str] = {
    **{name: told for name, told in FAULTS.items() if name not in DEFINITION},
    "near_objects_only": (
        f"VAD's test pipeline drops objects that are now beyond {NEAR_M[0]:g} m ahead or behind "
        f"or {NEAR_M[1]:g} m aside, or of none of its ten classes; mended, all are there."
    ),
}
"""Switches: those of the scores, and one of the data that VAD's metric is given."""

SAMPLES_AT_ONCE = 512


class NuScenesPlanning:
    """nuScenes open-loop planning as a `Benchmark`: L2, collisions, and leaving the road.

    Without switches the figures are each convention's as it is meant (its grid, its filter of the
    recorded vehicle's own hits, its classes); with ``faults="all"`` and ``samples="published"``
    those that its published code makes. ``collision_exact`` stands beside them: whether the
    vehicle's box, turned along the plan, has hit anybody's by then. All of them say little of
    driving (arXiv 2305.10430, 2312.03031).
    """

    name: str
    steps = FUTURE
    hz = HZ
    frame = (
        "origin of LIDAR_TOP, in its present frame turned to x forward, y left, m; "
        "the first waypoint is for 0.5 s from now"
    )

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-trainval",
        split: str | None = None,
        *,
        samples: str = "common",
        faults: str | Collection[str] = (),
        conventions: Sequence[str] = ("uniad", "stp3", "vad", "exact"),
        maps: str | Path | None = None,
    ) -> None:
        """Read the tables, and find the samples.

        Args:
            root: the folder that holds the folder `version`.
            version: for instance ``v1.0-mini``.
            split: an official split; None: ``val`` of trainval, else all scenes, as the references
                have it.
            samples: one of `SAMPLES`.
            faults: names of `PLANNING_FAULTS` to be reproduced where a convention's code has them,
                or ``all``.
            conventions: of ``uniad``, ``stp3``, ``vad`` and ``exact``.
            maps: folder of maps, where it is not ``maps`` in `root`, see `open_map`.

        Raises:
            DatasetError: tables are missing or damaged, a name is unknown, or there is nothing to
                score.
        """
        if samples not in SAMPLES:
            raise DatasetError(f"samples={samples!r}; have: {', '.join(SAMPLES)}")
        known = set(CONVENTIONS) - {"omnidrive"}  # its plans are of another point
        if not conventions or isinstance(conventions, str) or set(conventions) - known:
            raise DatasetError(f"conventions={conventions!r}; have: {', '.join(sorted(known))}")
        faults = set(PLANNING_FAULTS) if faults == "all" else set(faults)
        if unknown := faults - set(PLANNING_FAULTS):
            raise DatasetError(
                f"unknown faults {sorted(unknown)}; have: all, {', '.join(PLANNING_FAULTS)}"
            )
        if split is None and version == "v1.0-trainval":
            split = "val"
        self.name = f"nuScenes {version.removeprefix('v1.0-')} {split or 'all'}"
        self.data = NuScenes(root, version, split)
        self.conventions = tuple(conventions)
        self._faults = {
            name: (DEFINITION | faults) & CONVENTIONS[name].faults for name in self.conventions
        }
        self._near_only = "near_objects_only" in faults
        self._motion = ego_motion(self.data.tables)
        self._valid = self._sets(samples)
        chosen = np.flatnonzero(np.any([v.any(1) for v in self._valid.values()], axis=0))
        if samples == "published" and "uniad" in self.conventions:
            chosen = np.arange(len(self.data))
        if not len(chosen):
            raise DatasetError(f"{self.name}: none of {len(self.data)} samples can be scored")
        tokens = self.data.tables.tokens
        self.keys = [tokens[i] for i in chosen]
        self._maps = self._open_maps(maps)
        self.faults = self._missing()
        self.conditions = self._conditions(samples)

    def _sets(self, samples: str) -> dict[str, NDArray[np.bool_]]:
        """(N, 6) for each convention: which waypoints it looks at."""
        known, past = self._motion.known, self._motion.past
        whole = known & known.all(axis=1, keepdims=True)
        common = whole & (past >= 1)[:, None]
        published = {"uniad": known, "stp3": whole & (past >= 2)[:, None], "vad": whole}
        published["exact"] = whole
        return {
            name: common if samples == "common" else published[name] for name in self.conventions
        }

    def _open_maps(self, folder: str | Path | None) -> dict[str, NuScenesMap]:
        locations = sorted({scene.location for scene in self.data.tables.scenes})
        found = {place: open_map(self.data.root, place, folder) for place in locations}
        return {place: there for place, there in found.items() if there is not None}

    def _missing(self) -> list[str]:
        tables = self.data.tables
        faults = []
        if tables.absent:
            faults.append(
                f"split {self.data.split}: {len(tables.absent)} scenes are not in the tables, the "
                f"first {tables.absent[0]}"
            )
        without = {scene.location for scene in tables.scenes} - set(self._maps)
        if self._maps and without:
            faults.append(f"no drivable area of {', '.join(sorted(without))}: not in boundary_rate")
        return faults

    def _conditions(self, samples: str) -> dict[str, str]:
        pooled = {
            "instant": "at the instant", "mean": "mean of the steps up to it", "any": "by then",
        }  # fmt: skip
        told = {
            "samples": f"{samples}: {SAMPLES[samples]}; {len(self.keys)} of {len(self.data)}",
            "observation.intent": "left or right if the recorded future ends 2 m aside: to a "
            "policy that reads it, it gives the answer away",
            "observation.ego_states": "of annotated poses; planners that read nothing else do well",
        }
        for name in self.conventions:
            rules, switches = CONVENTIONS[name], self._switches(name)
            cells = f"cells of {rules.cell_m} m" if "cells" in switches else "exact boxes"
            who = "vehicles" if "vehicles_only" in switches else "vehicles and people"
            turned = "not turned" if "fixed_heading" in switches else "turned along the plan"
            truth = "count as free" if "filtered_as_free" in switches else "are left out"
            used = self._counted(name) if samples == "published" else len(self.keys)
            told[name] = (
                f"{used} samples; {pooled[rules.pooling]}; {cells} of {who}, the vehicle's box "
                f"{turned}; steps where the recorded vehicle hits something {truth}; faults "
                f"reproduced: {', '.join(sorted(switches - DEFINITION)) or 'none'}"
            )
        if self._maps:
            told["boundary_rate"] = (
                "the vehicle's box leaves the drivable area by then; samples where it is off it at "
                "present are left out"
            )
        return told

    def _counted(self, convention: str) -> int:
        everyone = convention == "uniad" and "masked_as_zero" in self._faults[convention]
        return len(self.data) if everyone else int(self._valid[convention].any(1).sum())

    def _switches(self, convention: str) -> frozenset[str]:
        near = {"near_objects_only"} if convention == "vad" and self._near_only else set()
        return self._faults[convention] | near

    @cached_property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Observation key to shape and dtype; pictures if the files of the first sample exist."""
        row = self.data.rows[self.keys[0]]
        pictures = self.data.cameras(row)
        return {
            "observation.ego_states": ((PAST, 6), "float32"),
            "observation.ego_heading": ((PAST,), "float32"),
            "observation.intent": ((), "int64"),
            **{
                f"observation.images.{name}": (
                    (3, pictures[channel].height, pictures[channel].width),
                    "uint8",
                )
                for name, channel in CAMERAS.items()
                if channel in pictures and (self.data.root / pictures[channel].path).is_file()
            },
        }

    def observe(self, key: str, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The observations `wanted` of sample `key`; only the pictures among them are decoded.

        Raises:
            DatasetError: there is no such sample or observation, or its picture is missing or
                damaged.
        """
        row = self._row(key)
        return {name: self._observation(row, name) for name in wanted}

    def _row(self, key: str) -> int:
        if key not in self.data.rows:
            raise DatasetError(f"no sample is called {key!r}; have {self.keys[0]!r} and others")
        return self.data.rows[key]

    def _observation(self, row: int, name: str) -> NDArray[Any]:
        if name == "observation.ego_states":
            return self._motion.states[row].astype(np.float32)
        if name == "observation.ego_heading":
            return self._motion.headings[row].astype(np.float32)
        if name == "observation.intent":
            return np.array(self._motion.intent[row], dtype=np.int64)
        channel = CAMERAS.get(name.removeprefix("observation.images."))
        if channel is None or not name.startswith("observation.images."):
            raise DatasetError(f"no observation is called {name!r}; have: {', '.join(self.inputs)}")
        pixels = self.data.pixels(row, channel)
        expected = self.inputs.get(name, (pixels.shape,))[0]
        if pixels.shape != expected:
            token = self.data.tables.tokens[row]
            raise DatasetError(
                f"sample {token}: a picture of {pixels.shape} from {channel}, expected {expected}"
            )
        return pixels

    def score(self, keys: Sequence[str], plans: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """What plans (N, 6, 2) are worth: for each convention and horizon ``l2_uniad_1s`` (m),
        ``collision_uniad_1s`` (0 to 1) and so on, and ``boundary_rate_1s``; nan where it does not
        count.

        Raises:
            DatasetError: a sample is unknown, shapes do not fit, or a plan is not finite.
        """
        plans = np.asarray(plans, dtype=np.float64)
        if plans.shape != (len(keys), FUTURE, 2):
            raise DatasetError(
                f"plans of shape {plans.shape} for {len(keys)} samples, expected (N, {FUTURE}, 2)"
            )
        rows = np.array([self._row(key) for key in keys], dtype=np.int64)
        pieces = [
            self._score(rows[i : i + SAMPLES_AT_ONCE], plans[i : i + SAMPLES_AT_ONCE])
            for i in range(0, max(len(rows), 1), SAMPLES_AT_ONCE)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _score(
        self, rows: NDArray[np.int64], plans: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        truth = self._motion.future[rows]
        columns: dict[str, NDArray[np.float64]] = {}
        for name in self.conventions:
            valid, switches = self._valid[name][rows], self._faults[name]
            agents = self._agents_near if self._near_only and name == "vad" else self._agents
            boxes = agents.boxes(rows, name)
            if name != "exact":  # its distances would be those of stp3 again
                l2 = displacements(plans, truth, valid, convention=name, faults=switches)
                columns |= {f"l2_{name}_{horizon}": column for horizon, column in l2.items()}
            hit = collisions(plans, truth, boxes, valid, convention=name, faults=switches)
            columns |= {f"collision_{name}_{horizon}": column for horizon, column in hit.items()}
        if self._maps:
            left = self._boundary(rows, plans)
            columns |= {f"boundary_rate_{horizon}": column for horizon, column in left.items()}
        return columns

    @cached_property
    def _agents(self) -> Agents:
        return Agents(self.data.tables)

    @cached_property
    def _agents_near(self) -> Agents:
        return Agents(self.data.tables, near_only=True)

    def _boundary(
        self, rows: NDArray[np.int64], plans: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        tables = self.data.tables
        location = np.array([scene.location for scene in tables.scenes])[tables.scene[rows]]
        left = np.zeros((len(rows), FUTURE + 1), dtype=bool)
        left[:, 0] = True  # without a map nothing is known
        for place, there in self._maps.items():
            here = np.flatnonzero(location == place)
            if len(here):
                left[here] = leaves_area(
                    plans[here], plan_poses(tables, rows[here]), there.drivable
                )
        counted = np.broadcast_to(~left[:, :1], plans.shape[:2])
        return pool(left[:, 1:].astype(np.float64), counted, "any")

    def metrics(
        self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
    ) -> dict[str, Metric]:
        """The means of the columns, and of each three horizons (``_avg``), with intervals by a
        bootstrap over scenes."""
        scenes = self.data.tables.scene[[self._row(key) for key in keys]]
        figures = {}
        for name in dict.fromkeys(column.rpartition("_")[0] for column in columns):
            unit = "m" if name.startswith("l2") else "fraction"
            three = np.stack([columns[f"{name}_{horizon}"] for horizon in HORIZONS], axis=1)
            means = []
            for horizon, values in zip(HORIZONS, three.T, strict=True):
                value, low, high = mean_interval(values, scenes)
                means.append(value)
                n = int((~np.isnan(values)).sum())
                figures[f"{name}_{horizon}"] = Metric(value, unit, n, low, high)
            there = ~np.isnan(three)
            counted = there.any(1)
            n = int(counted.sum())
            # What each sample adds to the mean of the three, which may be of different samples.
            share = np.where(there, three, 0) / np.maximum(there.sum(0), 1) * n / len(HORIZONS)
            _, low, high = mean_interval(np.where(counted, share.sum(1), np.nan), scenes)
            figures[f"{name}_avg"] = Metric(float(np.mean(means)), unit, n, low, high)
        return figures

    def worst(self, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Plans that collide first, in most conventions and steps; then the farthest off at 3 s."""
        crash, error = (
            np.nan_to_num(
                np.stack([c for name, c in columns.items() if re.fullmatch(f"{kind}_.*_3s", name)])
            )
            for kind in ("collision", "l2")
        )
        return np.lexsort((-error.max(axis=0), -crash.sum(axis=0)))

    def moment(self, key: str) -> Moment:
        """Sample `key`: the road and everybody on it, the way there and on, the front camera."""
        row = self._row(key)
        tables = self.data.tables
        scene = tables.scenes[tables.scene[row]]
        seconds = (tables.stamps_us[row] - tables.stamps_us[scene.first]) / 1e6
        known = self._motion.known[row]
        channel = self.data.cameras(row).get("CAM_FRONT")
        there = channel is not None and (self.data.root / channel.path).is_file()
        return Moment(
            title=f"{scene.name}, {seconds:.1f} s",
            shapes=(
                *surroundings(self.data, row, self._maps.get(scene.location)),
                Shape("ego", self._motion.states[row, :, :2]),
            ),
            truth=self._motion.future[row][known],
            image=self.data.jpeg(row, "CAM_FRONT") if there else None,
        )
