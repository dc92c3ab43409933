"""Self-verification against its own formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.selectors import PastConsistency, select


def bits(*values):
    return torch.tensor(values, dtype=torch.bool)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), decay=st.sampled_from([1.0, 0.5, 0.9]))
def test_it_is_the_weighted_mean_squared_error(candidates, drawn, seed, decay):
    given_ = drawn(seed)
    found = PastConsistency(decay).score(candidates(**given_)).values
    error = (given_["past"] - given_["executed"][:, None]).square().mean(-1)  # (B, N, 2)
    expected = (decay * error[..., 0] + error[..., 1]) / (decay + 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), true=st.integers(0, 4))
def test_who_remembers_exactly_is_chosen(candidates, drawn, seed, true):
    given_ = drawn(seed)
    given_["past"][:, true] = given_["executed"]
    chosen = select(PastConsistency(), candidates(**given_))
    assert chosen.index.tolist() == [true, true]
    assert (chosen.scores[:, true] == 0).all()
    lowest = chosen.scores.gather(1, chosen.index[:, None])[:, 0]
    assert (lowest <= chosen.scores.mean(1)).all()


def test_until_all_of_the_past_has_happened_nothing_is_chosen(candidates, drawn):
    given_ = drawn(0) | {"known": bits([False, True], [True, True])}
    chosen = select(PastConsistency(), candidates(**given_))
    assert chosen.scores[0].tolist() == [0] * 5
    assert int(chosen.index[0]) == 0
    assert chosen.reasons == ("its past is not known yet", "")
    full = select(PastConsistency(), candidates(**drawn(0)))
    assert torch.equal(chosen.scores[1], full.scores[1])


def test_or_what_is_known_is_compared(candidates, drawn):
    given_ = drawn(0) | {"known": bits([False, True], [False, False])}
    given_["executed"][0, 0] = 99.0
    chosen = select(PastConsistency(warm_up="partial"), candidates(**given_))
    expected = (given_["past"][0, :, 1] - given_["executed"][0, 1]).square().mean(-1)
    torch.testing.assert_close(chosen.scores[0], expected)
    assert chosen.reasons == ("", "its past is not known yet")


@pytest.mark.parametrize("warm_up", ["single", "partial"])
def test_what_somebody_else_decided_does_not_count(candidates, drawn, warm_up):
    overridden = torch.zeros(2, 2, 2, dtype=torch.bool)
    overridden[0, 1, 0] = True
    overridden[1] = True
    given_ = drawn(0) | {"overridden": overridden}
    before = select(PastConsistency(warm_up=warm_up), candidates(**given_))
    given_["executed"][overridden] = torch.nan
    after = select(PastConsistency(warm_up=warm_up), candidates(**given_))
    assert torch.equal(after.scores, before.scores)
    error = (given_["past"][0] - given_["executed"][0]).square().flatten(1)[:, [0, 1, 3]]
    torch.testing.assert_close(after.scores[0], error.mean(-1))
    assert after.reasons == ("", "its past is not known yet")


def test_actions_that_are_not_finite_are_not_compared(candidates, drawn):
    given_ = drawn(0)
    given_["executed"][:, 0, 1] = torch.nan
    chosen = select(PastConsistency(), candidates(**given_))
    assert chosen.scores.isfinite().all()
    assert chosen.reasons == ("", "")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="decay must be above 0 and up to 1, got 0"):
        PastConsistency(decay=0)
    with pytest.raises(ValueError, match="unknown warm-up 'none'; choose one of single, partial"):
        PastConsistency(warm_up="none")
