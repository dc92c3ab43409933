"""Scores of samples beside the obvious loops."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import gaussian_kde

from fastloop.datasets.scores import sampled
from fastloop.datasets.scores.sampled import (
    FLOOR,
    alike,
    average_pairwise_distance,
    displacements,
    kde_log_likelihood,
    multimodal_displacements,
)


@pytest.fixture(params=[1 << 23, 100], ids=["at once", "in pieces"])
def drawn(request, monkeypatch):
    monkeypatch.setattr(sampled, "AT_ONCE", request.param)
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 5, 3, 2)), rng.normal(size=(7, 3, 2))


def test_displacements_by_hand():
    truth = np.zeros((1, 2, 2))
    samples = np.array([[[[0, 0], [3, 4]], [[2, 0], [0, 2]]]], dtype=float)
    mean, last = displacements(samples, truth)
    assert mean.tolist() == [[2.5, 2.0]]
    assert last.tolist() == [[5.0, 2.0]]


def test_displacements_as_loops(drawn):
    samples, truth = drawn
    mean, last = displacements(samples, truth)
    for a in range(7):
        for n in range(5):
            away = [np.linalg.norm(samples[a, n, t] - truth[a, t]) for t in range(3)]
            assert mean[a, n] == pytest.approx(np.mean(away))
            assert last[a, n] == pytest.approx(away[-1])


def test_a_body_is_one_vector():
    samples = np.ones((1, 1, 4, 48))
    mean, _ = displacements(samples, np.zeros((1, 4, 48)))
    assert mean[0, 0] == pytest.approx(np.sqrt(48))


def test_pairwise_distance_as_scipy(drawn):
    samples, _ = drawn
    found = average_pairwise_distance(samples)
    expected = [pdist(one.reshape(5, -1)).mean() for one in samples]
    np.testing.assert_allclose(found, expected)
    assert average_pairwise_distance(samples[:, :1]).tolist() == [0] * 7


def test_alike_are_those_nearer_and_oneself():
    situations = np.array([[0.0], [0.05], [0.1], [5.0], [0.1 - 1e-6]])
    found = [sorted(rows.tolist()) for rows in alike(situations, 0.1)]
    assert found == [[0, 1, 4], [0, 1, 2, 4], [1, 2, 4], [3], [0, 1, 2, 4]]
    crowd = alike(np.zeros((700, 2)), 0.1, most=10)
    assert {len(rows) for rows in crowd} == {10}
    assert [rows[0] for rows in crowd] == list(range(700)), "oneself is always among them"
    assert all(len(set(rows.tolist())) == 10 for rows in crowd)
    assert crowd[0][-1] == 699, "evenly over all"


def test_multimodal_as_loops(drawn):
    samples, futures = drawn
    groups = [np.array([a, *range(a % 3)]) for a in range(7)]
    mean, last = multimodal_displacements(samples, futures, groups)
    for a, rows in enumerate(groups):
        away = [np.linalg.norm(samples[a] - futures[row], axis=-1) for row in rows]
        assert mean[a] == pytest.approx(np.mean([d.mean(1).min() for d in away]))
        assert last[a] == pytest.approx(np.mean([d[:, -1].min() for d in away]))
    alone, _ = multimodal_displacements(samples, futures, [np.array([a]) for a in range(7)])
    np.testing.assert_allclose(alone, displacements(samples, futures)[0].min(1))


def test_kernel_density_as_scipy(drawn, monkeypatch):
    samples, truth = drawn
    monkeypatch.setattr(sampled, "NARROWEST", 0)
    monkeypatch.setattr(sampled, "FLOOR", -1e9)
    found = kde_log_likelihood(samples, truth)
    for a in range(7):
        densities = [gaussian_kde(samples[a, :, t].T).logpdf(truth[a, t])[0] for t in range(3)]
        assert found[a] == pytest.approx(np.mean(densities))


def test_kernel_density_has_a_floor_and_no_infinite_height():
    same = np.zeros((2, 6, 3, 2))
    truth = np.zeros((2, 3, 2))
    truth[1] = 1e3
    near, far = kde_log_likelihood(same, truth)
    assert np.isfinite(near)
    assert near > 5
    assert far == FLOOR
    with pytest.raises(ValueError, match="2 dimensions needs more than 2 samples"):
        kde_log_likelihood(same[:, :2], truth)


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"\(2, 5, 3, 2\) for futures of shape \(2, 4, 2\)"):
        displacements(np.zeros((2, 5, 3, 2)), np.zeros((2, 4, 2)))
