"""Figures of forecasts with several modes: hand-made cases, and what they cannot be made of."""

import sys

import numpy as np
import pytest

from fastloop.datasets.scores.forecasting import TOP_K, UNITS, displacement_scores
from fastloop.extras import MissingExtraError

TRUTH = np.stack([np.arange(1.0, 13), np.zeros(12)], -1)


def beside(*meters):
    """Modes that run beside the truth at these distances."""
    return np.stack([TRUTH + np.array([0, m]) for m in meters])


@pytest.fixture
def devkit():
    return pytest.importorskip("nuscenes.eval.prediction.metrics")


def test_the_most_probable_modes_compete(devkit):
    scores = displacement_scores(beside(3, 1, 2), np.array([0.2, 0.1, 0.7]), TRUTH)
    assert set(scores) == set(UNITS) - {"OffRoadRate"}
    assert scores["minADE_1"] == scores["minFDE_1"] == 2.0
    assert scores["minADE_5"] == scores["minFDE_10"] == 1.0  # there are only three
    assert (scores["MissRateTopK_2_1"], scores["MissRateTopK_2_5"]) == (1.0, 0.0)


def test_one_far_point_is_a_miss(devkit):
    mode = TRUTH.copy()
    mode[3, 1] = 2.0
    scores = displacement_scores(mode[None], np.ones(1), TRUTH)
    assert scores["MissRateTopK_2_10"] == 1.0
    assert scores["minADE_1"] == pytest.approx(2 / 12)
    assert scores["minFDE_1"] == 0.0


def test_more_modes_never_hurt(devkit):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = displacement_scores(TRUTH + rng.normal(0, 2, (12, 12, 2)), rng.random(12), TRUTH)
        for name in ("minADE", "minFDE", "MissRateTopK_2"):
            values = [scores[f"{name}_{k}"] for k in TOP_K]
            assert values == sorted(values, reverse=True)


def test_shapes_that_do_not_fit(devkit):
    with pytest.raises(ValueError, match=r"modes of shape \(12, 2\) for a truth of shape \(6, 2\)"):
        displacement_scores(beside(1), np.ones(1), TRUTH[:6])


def test_without_the_devkit_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "nuscenes.eval.prediction.metrics", None)
    with pytest.raises(MissingExtraError, match=r'pip install .*"\.\[nuscenes\]"'):
        displacement_scores(beside(1), np.ones(1), TRUTH)
