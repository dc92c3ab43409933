"""Bidirectional decoding: coherence and contrast against their formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.selectors import Coherence, Contrast, Weighted, select


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_without_decay_and_contrast_it_is_the_nearest_to_the_last_plan(candidates, drawn, seed):
    given_ = drawn(seed)
    chosen = select(Coherence(rho=1.0), candidates(**given_))
    apart = (given_["future"] - given_["previous"][:, None]).norm(dim=-1).sum(-1)
    assert torch.equal(chosen.index, apart.argmin(-1))
    only = select(Weighted([(Coherence(1.0), 1.0), (Contrast(None), 0.0)]), candidates(**given_))
    assert torch.equal(only.index, chosen.index)


def test_coherence_by_hand(candidates):
    future = [[[[0.0, 3.0], [4.0, 0.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]]
    planned = torch.tensor([[True, True, False]])
    scores = Coherence(0.5).score(candidates(future, planned=planned)).values
    assert scores.tolist() == [[3 + 0.5 * 4, 1.0]]


def distances(a, b):
    return (a[:, :, None] - b[:, None]).norm(dim=-1).mean(-1)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_contrast_without_a_plan_takes_all_samples(candidates, drawn, seed):
    given_ = drawn(seed) | {"planned": torch.zeros(2, 3, dtype=torch.bool)}
    weak = drawn(seed + 1, samples=3)["future"]
    scores = Contrast(lambda history, rng: weak).score(candidates(**given_)).values
    strong = given_["future"]
    expected = distances(strong, strong).mean(-1) - distances(strong, weak).mean(-1)
    torch.testing.assert_close(scores, expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_contrast_takes_the_better_halves(candidates, drawn, seed):
    given_ = drawn(seed, samples=6)
    weak = drawn(seed + 1, samples=4)["future"]
    seen = candidates(**given_)
    strong = given_["future"]
    expected = 0
    for sign, samples, half in ((1, strong, 3), (-1, weak, 2)):
        near = Coherence().distance(seen, samples).argsort(-1)[:, :half]
        best = samples.take_along_dim(near[..., None, None], 1)
        expected = expected + sign * distances(strong, best).mean(-1)
    scores = Contrast(lambda history, rng: weak).score(seen).values
    torch.testing.assert_close(scores, expected)


def test_weak_samples_that_are_not_finite_are_left_out(candidates, drawn):
    given_ = drawn(0) | {"planned": torch.zeros(2, 3, dtype=torch.bool)}
    weak = drawn(1, samples=3)["future"]
    weak[0, 0, 0, 0] = torch.nan
    weak[1] = torch.inf
    scored = Contrast(lambda history, rng: weak).score(candidates(**given_))
    expected = (
        distances(given_["future"], given_["future"]).mean(-1)[0]
        - distances(given_["future"], weak[:, 1:]).mean(-1)[0]
    )
    torch.testing.assert_close(scored.values[0], expected)
    assert scored.reasons == ("", "there is nothing to contrast")


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 4, 3, 2), (2, 4, 2, 2)])
def test_weak_samples_of_another_shape_are_refused(candidates, drawn, shape):
    with pytest.raises(ValueError, match=r"samples must be \(2, M, 3, 2\), got"):
        Contrast(lambda history, rng: torch.zeros(shape)).score(candidates(**drawn(0)))


@pytest.mark.parametrize("rho", [0, 1.1, -1])
def test_rho_is_a_share(rho):
    with pytest.raises(ValueError, match="rho must be above 0 and up to 1"):
        Coherence(rho)
