"""What holds for every selector, and how one of the scored is taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.selectors import (
    SELECTORS,
    Coherence,
    Contrast,
    Density,
    Feasible,
    PastConsistency,
    Weighted,
    make_selector,
    select,
)


def weak(history, rng):
    source = torch.Generator().manual_seed(7)
    drawn = torch.randn(1, 4, 3, 2, generator=source, dtype=torch.float64)
    return drawn.expand(len(history), -1, -1, -1)


ALL = {
    **{name: make_selector(name) for name in SELECTORS},
    "recent": PastConsistency(decay=0.5, warm_up="partial"),
    "contrast": Contrast(weak),
    "density": Density(lambda seen: -seen.future.square().sum((-2, -1))),
    "feasible": Feasible(lambda actions: actions[..., 0].amax(-1) < 1, PastConsistency()),
    "bid": Weighted([(Coherence(), 1.0), (Contrast(weak), 0.7)]),
}


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
def test_the_order_of_candidates_does_not_matter(candidates, drawn, name, seed, order):
    given_ = drawn(seed)
    before = select(ALL[name], candidates(**given_))
    shuffled = given_ | {key: given_[key][:, order] for key in ("future", "past")}
    after = select(ALL[name], candidates(**shuffled))
    assert torch.equal(after.scores, before.scores[:, order])
    rows = torch.arange(2)
    assert torch.equal(shuffled["future"][rows, after.index], given_["future"][rows, before.index])
    assert after.reasons == before.reasons


@pytest.mark.parametrize("name", ALL)
def test_of_equals_the_first_is_taken(candidates, drawn, name):
    given_ = drawn(5)
    for pattern, firsts in (([0] * 5, {0}), ([1, 0, 1, 0, 1], {0, 1})):
        alike = given_ | {key: given_[key][:, pattern] for key in ("future", "past")}
        chosen = select(ALL[name], candidates(**alike))
        assert set(chosen.index.tolist()) <= firsts


@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_see_each_other(candidates, drawn, name):
    given_ = drawn(3, batch=6)
    together = select(ALL[name], candidates(**given_))
    for row in range(6):
        alone = select(
            ALL[name], candidates(**{key: value[[row]] for key, value in given_.items()})
        )
        assert torch.equal(alone.scores[0], together.scores[row])
        assert alone.index[0] == together.index[row]


@pytest.mark.parametrize("name", ALL)
def test_one_candidate_is_taken_as_it_is(candidates, drawn, name):
    assert select(ALL[name], candidates(**drawn(0, samples=1))).index.tolist() == [0, 0]


@pytest.mark.parametrize("where", ["future", "past"])
@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ALL)
def test_who_is_not_finite_never_wins_and_changes_nothing(candidates, drawn, name, what, where):
    given_ = drawn(1)
    best = int(select(ALL[name], candidates(**given_)).index[0])
    given_[where][0, best, 0, 0] = what
    chosen = select(ALL[name], candidates(**given_))
    left = [n for n in range(5) if n != best]
    without = candidates(**(given_ | {key: given_[key][:, left] for key in ("future", "past")}))
    assert chosen.scores[0, best] == torch.inf
    assert int(chosen.index[0]) == left[int(select(ALL[name], without).index[0])]
    torch.testing.assert_close(chosen.scores[0, left], select(ALL[name], without).scores[0])


@pytest.mark.parametrize("name", ALL)
def test_where_nobody_is_finite_the_first_is_taken_and_told(candidates, drawn, name):
    given_ = drawn(2)
    given_["future"][1] = torch.nan
    chosen = select(ALL[name], candidates(**given_))
    assert int(chosen.index[1]) == 0
    assert chosen.reasons[1] == "no candidate is finite"
    assert chosen.reasons[0] != "no candidate is finite"


@pytest.mark.parametrize("name", [*SELECTORS, "recent"])
def test_the_beginning_of_an_episode_tells_nothing_apart(candidates, drawn, name):
    """But for those that only compare candidates with each other."""
    given_ = drawn(4) | {
        "known": torch.zeros(2, 2, dtype=torch.bool), "planned": torch.zeros(2, 3, dtype=torch.bool)
    }  # fmt: skip
    chosen = select(ALL[name], candidates(**given_))
    if name == "medoid":
        assert chosen.reasons == ("", "")
        return
    assert (chosen.scores == 0).all()
    assert chosen.index.tolist() == [0, 0]
    assert all(chosen.reasons)


def test_unknown_selectors_are_told_what_there_is():
    with pytest.raises(ValueError, match=r"unknown selector 'best'.*past, past_partial, coherence"):
        make_selector("best")
