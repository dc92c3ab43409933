"""The nuScenes prediction challenge: where an agent is over the next six seconds, scored offline.

Samples, recorded futures and figures are nuscenes-devkit's (``PredictHelper``,
``eval/prediction``). It is no `Benchmark`: a forecast is of another agent, in the map's frame, has
several modes, and comes from a file in the challenge's format.

Where a file is not as the devkit expects, it raises anything, bare `Exception` too; hence what is
caught here around its calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Metric
from fastloop.datasets.errors import DatasetError, OnFault, raise_fault
from fastloop.datasets.nuscenes.tables import read_tables
from fastloop.datasets.scores.forecasting import UNITS, displacement_scores, off_road_rate
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.extras import require

__all__ = ["SPLITS", "Forecast", "NuScenesPrediction", "read_forecasts"]

SPLITS = ("mini_train", "mini_val", "train", "train_val", "val")
SECONDS, STEPS, MAX_MODES = 6, 12, 25
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Forecast:
    """Where one agent may be, at 2 Hz from half a second after the sample on.

    Attributes:
        modes: (M, 12, 2) m in the map's frame, M at most 25.
        probabilities: (M,), which need not add up to one.
    """

    modes: NDArray[np.float64]
    probabilities: NDArray[np.float64]


def read_forecasts(path: str | Path, on_fault: OnFault = raise_fault) -> dict[str, Forecast]:
    """The forecasts of a submission, by ``<instance token>_<sample token>``.

    The format is the challenge's: a JSON list of ``{"instance", "sample", "prediction",
    "probabilities"}``.

    Raises:
        DatasetError: the file is missing, over 1 GiB or no JSON list; and, through `on_fault`,
            where an entry is malformed (its index is named) or repeats another.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path} is over {MAX_BYTES >> 30} GiB")
        entries = json.loads(path.read_bytes())
    except DatasetError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read ({error}), expected a JSON list") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{path} holds a {type(entries).__name__}, expected a list of forecasts")
    forecasts: dict[str, Forecast] = {}
    for index, entry in enumerate(entries):
        try:
            key, forecast = _forecast(entry)
            if key in forecasts:
                raise DatasetError(f"{key} was forecast before")
        except DatasetError as error:
            on_fault(DatasetError(f"{path}: entry {index}: {error}"))
        else:
            forecasts[key] = forecast
    return forecasts


class NuScenesPrediction:
    """A split of the prediction challenge.

    Attributes:
        name: of the data set and split.
        keys: ``<instance token>_<sample token>`` in the official order.
        scenes: the scene of each key, by name; empty where the tables lack it, which is a fault of
            that key.
        conditions: what a table must say of its figures.

    Args:
        root: the nuScenes root, with ``maps/prediction/prediction_scenes.json`` and, for the
            off-road rate, the four maps of ``maps/expansion``, which the devkit draws into 3 GB.
        version: for instance ``v1.0-trainval``.
        split: one of `SPLITS`.
        on_fault: what happens where the future of a key cannot be read or scored.

    Raises:
        DatasetError: the tables, the maps or the split are missing or damaged.
        MissingExtraError: nuscenes-devkit is not installed.
    """

    def __init__(
        self, root: str | Path, version: str, split: str, on_fault: OnFault = raise_fault
    ) -> None:
        if split not in SPLITS:
            raise DatasetError(f"unknown split {split!r}; have: {', '.join(SPLITS)}")
        root = Path(root)
        self._on_fault = on_fault
        # The devkit trusts its tables, to endless loops; so they are read and checked here first.
        tables = read_tables(root, version, "train" if split == "train_val" else split)
        self._helper = _helper(root, version)
        self.name = f"nuScenes prediction {split}"
        self.keys = _split(root, split)
        names = (tables.scenes[scene].name for scene in tables.scene)
        home = dict(zip(tables.tokens, names, strict=True))
        self.scenes = [home.get(key.partition("_")[2], "") for key in self.keys]
        self._home = dict(zip(self.keys, self.scenes, strict=True))
        self._off_road, missing = _off_road(root, self._helper)
        self.conditions = {
            "split": f"{split} of {version}, {len(self.keys)} agents",
            "horizon": f"{SECONDS} s at 2 Hz, map frame",
            "code": "nuscenes-devkit, eval/prediction, predict_2020_icra",
            "miss": "any point of the mode 2 m or more off",
        }
        if missing:
            self.conditions["OffRoadRate"] = f"left out: maps/expansion lacks {', '.join(missing)}"

    def truth(self, key: str) -> NDArray[np.float64]:
        """Where the agent of `key` really was, (12, 2) m in the map's frame.

        Raises:
            DatasetError: the tables have no such agent, or lose it within the six seconds.
        """
        instance, _, sample = key.partition("_")
        if not self._home[key]:
            raise DatasetError(f"{key}: no scene of the split holds this sample")
        try:
            future = self._helper.get_future_for_agent(
                instance, sample, seconds=SECONDS, in_agent_frame=False
            )
        except Exception as error:
            raise DatasetError(f"{key}: the tables do not tell its future ({error!r})") from error
        if np.shape(future) != (STEPS, 2):
            raise DatasetError(
                f"{key}: {len(future)} keyframes of its future are annotated, expected {STEPS}"
            )
        return np.asarray(future, dtype=np.float64)

    def score(
        self, keys: Sequence[str], forecasts: Mapping[str, Forecast]
    ) -> dict[str, NDArray[np.float64]]:
        """The figures of each of the N keys as columns (N,); nan without a forecast or truth."""
        names = [name for name in UNITS if name != "OffRoadRate" or self._off_road is not None]
        columns = {name: np.full(len(keys), np.nan) for name in names}
        for row, key in enumerate(keys):
            if key not in forecasts:
                continue
            try:
                scores = self._scores(key, forecasts[key])
            except DatasetError as fault:
                self._on_fault(fault)
            else:
                for name, value in scores.items():
                    columns[name][row] = value
        return columns

    def metrics(
        self, keys: Sequence[str], columns: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, Metric]:
        """Means over the keys that were scored; the intervals draw whole scenes."""
        scenes = [self._home[key] for key in keys]
        return {
            name: Metric(value, UNITS[name], int(np.isfinite(column).sum()), low, high)
            for name, column in columns.items()
            for value, low, high in [mean_interval(column, scenes)]
        }

    def _scores(self, key: str, forecast: Forecast) -> dict[str, float]:
        scores = displacement_scores(forecast.modes, forecast.probabilities, self.truth(key))
        if self._off_road is not None:
            sample = key.partition("_")[2]
            try:
                scores["OffRoadRate"] = off_road_rate(self._off_road, sample, forecast.modes)
            except Exception as error:
                raise DatasetError(f"{key}: its modes fit no map ({error!r})") from error
        return scores


def _helper(root: Path, version: str) -> Any:
    """The devkit's `PredictHelper` of a root."""
    nuscenes = require("nuscenes.nuscenes", extra="nuscenes")
    prediction = require("nuscenes.prediction", extra="nuscenes")
    try:
        tables = nuscenes.NuScenes(version, dataroot=str(root), verbose=False)
        return prediction.PredictHelper(tables)
    except Exception as error:
        raise DatasetError(f"nuscenes-devkit cannot read {root / version} ({error!r})") from error


def _split(root: Path, split: str) -> list[str]:
    """The official keys of a split."""
    path = root / "maps" / "prediction" / "prediction_scenes.json"
    splits = require("nuscenes.eval.prediction.splits", extra="nuscenes")
    if not path.is_file():
        raise DatasetError(f"{path} is missing: it comes with the map expansion of nuScenes")
    try:
        keys = splits.get_prediction_challenge_split(split, dataroot=str(root))
    except Exception as error:
        raise DatasetError(f"{path} cannot be read ({error!r})") from error
    if not all(isinstance(key, str) and key.count("_") == 1 for key in keys):
        raise DatasetError(f"{path} holds more than strings of <instance>_<sample>")
    if len(set(keys)) != len(keys):
        raise DatasetError(f"{path} names an agent twice")
    if not keys:
        raise DatasetError(f"{path} names no agent of {split}")
    return list(keys)


def _off_road(root: Path, helper: Any) -> tuple[Any, list[str]]:
    """The devkit's `OffRoadRate`, or None and the files of maps that it lacks."""
    maps = require("nuscenes.map_expansion.map_api", extra="nuscenes")
    metrics = require("nuscenes.eval.prediction.metrics", extra="nuscenes")
    folder = root / "maps" / "expansion"
    files = [f"{location}.json" for location in maps.locations]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        return None, missing
    try:
        return metrics.OffRoadRate(helper, []), []
    except Exception as error:
        raise DatasetError(f"nuscenes-devkit cannot read {folder} ({error!r})") from error


def _forecast(entry: Any) -> tuple[str, Forecast]:
    wanted = ("instance", "sample", "prediction", "probabilities")
    if not isinstance(entry, dict) or not set(wanted) <= entry.keys():
        raise DatasetError(f"expected an object with {', '.join(wanted)}, got {str(entry)[:80]}")
    if not isinstance(entry["instance"], str) or not isinstance(entry["sample"], str):
        raise DatasetError("instance and sample are tokens, strings")
    modes, probabilities = _numbers(entry["prediction"]), _numbers(entry["probabilities"])
    if modes.shape[1:] != (STEPS, 2) or not 0 < len(modes) <= MAX_MODES:
        raise DatasetError(
            f"prediction has shape {modes.shape}, expected (modes, {STEPS}, 2) with 1 to "
            f"{MAX_MODES} modes"
        )
    if probabilities.shape != modes.shape[:1] or (probabilities < 0).any():
        raise DatasetError(f"expected {len(modes)} probabilities of 0 or more")
    return f"{entry['instance']}_{entry['sample']}", Forecast(modes, probabilities)


def _numbers(value: Any) -> NDArray[np.float64]:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"lists of numbers are ragged or too deep ({error})") from error
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise DatasetError("expected lists of finite numbers")
    return array.astype(np.float64)
