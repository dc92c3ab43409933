"""Commit policies against cases worked by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.decoding import Confidence, EntropyBound, FixedCount, Sequential

OPEN = [True, True, False, True]
PROBABILITIES = [[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.75, 0.25]]


def written(commit, probabilities=PROBABILITIES, unwritten=OPEN):
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    return commit(logits, logits.argmax(-1), torch.tensor([unwritten]))[0].int().tolist()


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        (Confidence(0.95), [0, 1, 0, 0]),  # nobody passes: the best
        (Confidence(0.9), [0, 1, 0, 0]),  # >=
        (Confidence(0.6), [0, 1, 0, 1]),
        (Confidence(0.0), [1, 1, 0, 1]),
        (FixedCount(2), [0, 1, 0, 1]),
        (FixedCount(9), [1, 1, 0, 1]),
        (EntropyBound(0.0), [0, 1, 0, 0]),
        (EntropyBound(0.33), [0, 1, 0, 1]),  # H(.9) = .325; + H(.75) = .887
        (EntropyBound(0.88), [0, 1, 0, 1]),
        (EntropyBound(0.89), [1, 1, 0, 1]),
        (Sequential(), [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_by_hand(commit, expected):
    assert written(commit) == expected


def test_a_threshold_is_reached_by_what_equals_it():
    assert written(Confidence(0.5), [[0.5, 0.5]] * 4) == [1, 1, 0, 1]


@pytest.mark.parametrize("commit", [Confidence(0.9), FixedCount(1), EntropyBound(0.0)])
def test_ties_go_to_the_left(commit):
    assert written(commit, [[0.5, 0.5]] * 4) == [1, 0, 0, 0]


@given(
    st.integers(0, 10**6),
    st.sampled_from(
        [Confidence(0.3), Confidence(2.0), FixedCount(2), EntropyBound(1.0), Sequential()]
    ),
)
def test_something_open_and_nothing_else(seed, commit):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 5, generator=random)
    logits[..., 4] = -torch.inf
    unwritten = torch.rand(3, 6, generator=random) < 0.4
    write = commit(logits, logits.argmax(-1), unwritten)
    assert not (write & ~unwritten).any()
    assert torch.equal(write.any(1), unwritten.any(1))
    planned = commit.passes(int(unwritten[0].sum()))
    steps = 0
    while unwritten[0].any():
        unwritten = unwritten & ~commit(logits, logits.argmax(-1), unwritten)
        steps += 1
    assert planned in (None, steps)


def test_a_count_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        FixedCount(0)
