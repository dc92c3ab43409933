"""Scores of forecasts with several modes, as nuscenes-devkit computes them.

The figures of the nuScenes prediction challenge (``predict_2020_icra.json``): minADE, minFDE and
miss rate of the k most probable modes, and the share of modes that leave the drivable area.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require

__all__ = ["TOP_K", "UNITS", "displacement_scores", "off_road_rate"]

TOP_K = (1, 5, 10)
TOLERANCE = 2  # m
# Our column, the devkit's class and its extra arguments, unit.
FIGURES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("minADE", "MinADEK", {}, "m"),
    ("minFDE", "MinFDEK", {}, "m"),
    (f"MissRateTopK_{TOLERANCE}", "MissRateTopK", {"tolerance": TOLERANCE}, "fraction"),
)
UNITS = {f"{name}_{k}": unit for name, _, _, unit in FIGURES for k in TOP_K}
UNITS["OffRoadRate"] = "fraction"


def displacement_scores(
    modes: NDArray[np.float64], probabilities: NDArray[np.float64], truth: NDArray[np.float64]
) -> dict[str, float]:
    """minADE_k, minFDE_k and MissRateTopK_2_k for k in `TOP_K`.

    The k most probable modes compete and the best counts; with fewer than k modes all of them do. A
    mode is a miss when any of its points is 2 m or more from the truth.

    Args:
        modes: (M, T, 2) m in any frame, M at most 25.
        probabilities: (M,).
        truth: (T, 2) m in the same frame.

    Raises:
        MissingExtraError: nuscenes-devkit is not installed.
        ValueError: the shapes do not fit.
    """
    if modes.shape[1:] != truth.shape:
        raise ValueError(f"modes of shape {modes.shape[1:]} for a truth of shape {truth.shape}")
    devkit = require("nuscenes.eval.prediction.metrics", extra="nuscenes")
    forecast = _prediction(modes, probabilities)
    scores: dict[str, float] = {}
    for name, kind, options, _ in FIGURES:
        (values,) = getattr(devkit, kind)(list(TOP_K), [], **options)(truth, forecast)
        scores |= {f"{name}_{k}": float(v) for k, v in zip(TOP_K, values, strict=True)}
    return scores


def off_road_rate(metric: Any, sample: str, modes: NDArray[np.float64]) -> float:
    """The share of `modes` (M, T, 2), in the map's frame, that leave the drivable area.

    Args:
        metric: an ``OffRoadRate`` of nuscenes-devkit, which holds the maps.
        sample: token of the sample, which says which map.
        modes: (M, T, 2) m in the map's frame.
    """
    return float(metric(None, _prediction(modes, np.ones(len(modes)), sample))[0])


def _prediction(
    modes: NDArray[np.float64], probabilities: NDArray[np.float64], sample: str = ""
) -> Any:
    classes = require("nuscenes.eval.prediction.data_classes", extra="nuscenes")
    return classes.Prediction("", sample, modes, probabilities)
