"""Medoid, density, feasibility and weighted sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.selectors import (
    Coherence,
    Density,
    Feasible,
    Medoid,
    PastConsistency,
    Weighted,
    select,
)


def line(*places):
    """One row of candidates that stand still at these places."""
    return torch.tensor(places, dtype=torch.float64)[None, :, None, None].expand(1, -1, 3, 1)


def test_the_medoid_is_in_the_middle_of_most(candidates):
    chosen = select(Medoid(), candidates(line(10.0, 1.0, 2.0, 3.0)))
    assert int(chosen.index) == 2
    assert chosen.scores[0].tolist() == [6.0, 3.0, 2.5, 2.5]


def test_the_likeliest_is_taken(candidates):
    seen = candidates(line(3.0, 1.0, 2.0))
    density = Density(lambda seen: -(seen.actions[..., 0, 0] - 2).square())
    assert int(select(density, seen).index) == 2
    broken = Density(lambda seen: torch.tensor([[1.0, torch.nan, 0.5]]))
    assert select(broken, seen).scores.tolist() == [[-1.0, torch.inf, -0.5]]
    with pytest.raises(ValueError, match=r"of \(1, 3\) candidates has shape \(3,\)"):
        Density(lambda seen: torch.zeros(3)).score(seen)


def test_only_the_feasible_are_compared(candidates):
    seen = candidates(line(10.0, 1.0, 2.0, 3.0, 11.0, 12.0))
    chosen = select(Feasible(lambda actions: actions[..., 0, 0] < 9, Medoid()), seen)
    assert chosen.scores.isinf().tolist() == [[True, False, False, False, True, True]]
    assert int(chosen.index) == 2, "the middle of 1, 2, 3"
    assert chosen.reasons == ("",)
    none = select(Feasible(lambda actions: actions[..., 0, 0] < 0, Medoid()), seen)
    assert none.reasons == ("no candidate is feasible",)
    assert torch.equal(none.scores, select(Medoid(), seen).scores)
    with pytest.raises(ValueError, match="must say yes or no to each"):
        Feasible(lambda actions: actions[..., 0, 0], Medoid()).score(seen)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_sum_has_no_units_and_no_part_without_weight(candidates, drawn, seed, scale):
    seen = candidates(**drawn(seed))
    past = select(PastConsistency(), seen)
    alone = select(Weighted([(PastConsistency(), 3.0), (Coherence(), 0.0)]), seen)
    assert torch.equal(alone.index, past.index)
    faint = select(Weighted([(PastConsistency(), 1.0), (Coherence(), 1e-9)]), seen)
    assert torch.equal(faint.index, past.index)
    values = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = (
        Weighted([(PastConsistency(), 1.0), (Density(lambda seen, by=by: by * values), 1.0)])
        for by in (1.0, scale)
    )
    torch.testing.assert_close(one.score(seen).values, other.score(seen).values)


def test_a_sum_by_hand(candidates):
    seen = candidates(line(0.0, 1.0, 2.0, 3.0))
    a, b = (Density(lambda seen, v=v: -torch.tensor([v])) for v in ([1, 2, 3, 6.0], [5, 5, 5, 5.0]))
    assert torch.equal(select(Weighted([(a, 1.0), (b, 9.0)]), seen).index, torch.tensor([0]))
    values = torch.tensor([1, 2, 3, 6.0], dtype=torch.float64)
    torch.testing.assert_close(
        Weighted([(a, 2.0)]).score(seen).values[0],
        2 * (values - values.mean()) / values.std(correction=0),
    )


def test_one_part_that_tells_apart_is_enough(candidates, drawn):
    given_ = drawn(0) | {"known": torch.zeros(2, 2, dtype=torch.bool)}
    both = Weighted([(PastConsistency(), 1.0), (Coherence(), 1.0)])
    chosen = select(both, candidates(**given_))
    assert chosen.reasons == ("", "")
    assert torch.equal(chosen.index, select(Coherence(), candidates(**given_)).index)
    given_ |= {"planned": torch.zeros(2, 3, dtype=torch.bool)}
    chosen = select(both, candidates(**given_))
    assert chosen.reasons == ("its past is not known yet",) * 2
    assert chosen.index.tolist() == [0, 0]


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0, 2.0], [torch.inf], [torch.nan]])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 0 or more, and one of them above 0"):
        Weighted([(Medoid(), weight) for weight in weights])
