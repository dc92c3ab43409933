"""Commit policies against cases worked by hand, and against each other where they must agree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.decoding.commits import (
    Confidence,
    Credit,
    EntropyBound,
    Factor,
    FixedCount,
    Hierarchy,
    JointThreshold,
    Sequential,
)

OPEN = [True, True, False, True]
PROBABILITIES = [[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.75, 0.25]]


def written(commit, probabilities=PROBABILITIES, unwritten=OPEN):
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    return commit(logits, logits.argmax(-1), torch.tensor([unwritten]))[0].int().tolist()


def ones(*confidences):
    """Slots with these confidences, all of them open."""
    rows = [[p, 1 - p] if p >= 0.5 else [p] + [(1 - p) / 20] * 20 for p in confidences]
    width = max(map(len, rows))
    return [row + [0.0] * (width - len(row)) for row in rows], [True] * len(rows)


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
        (Factor(0.0), [0, 1, 0, 0]),
        (Factor(0.74), [0, 1, 0, 0]),  # .75 has to reach 1 - .74 / 3
        (Factor(0.76), [0, 1, 0, 1]),
        (Factor(1.99), [0, 1, 0, 1]),  # .5 has to reach 1 - 1.99 / 4
        (Factor(2.01), [1, 1, 0, 1]),
        (Hierarchy(0.95, 0.8), [0, 1, 0, 0]),
        (Hierarchy(0.95, 0.7), [0, 1, 0, 1]),  # the best of each run
        (Hierarchy(0.5, 0.5), [1, 1, 0, 1]),
        (JointThreshold(0.7), [0, 1, 0, 1]),
        (Credit(Confidence(0.6)), [0, 1, 0, 1]),
        (Sequential(), [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_by_hand(commit, expected):
    assert written(commit) == expected


def test_a_factor_does_not_write_the_last_slot_whatever_it_reaches():
    """The published code writes all three of these."""
    assert written(Factor(1.0), *ones(0.99, 0.9, 0.1)) == [1, 1, 0]
    assert written(Factor(1.0), *ones(0.99, 0.1, 0.7)) == [1, 0, 1]


def test_runs_are_of_open_slots():
    probabilities, _ = ones(0.6, 0.7, 0.99, 0.5, 0.99, 0.55, 0.56, 0.45)
    unwritten = [True, True, False, True, False, True, True, True]
    assert written(Hierarchy(0.9, 0.4), probabilities, unwritten) == [0, 1, 0, 1, 0, 0, 1, 0]
    assert written(Hierarchy(0.9, 0.52), probabilities, unwritten) == [0, 1, 0, 0, 0, 0, 1, 0]
    assert written(Hierarchy(0.6, 0.52), probabilities, unwritten) == [1, 1, 0, 0, 0, 0, 1, 0]


def test_credit_is_earned_and_falls():
    logits = torch.tensor([[[0.3, 0.7], [0.2, 0.8]]], dtype=torch.float64).log()
    unwritten = torch.tensor([[True, False]])
    account = Credit(weight=0.5, decay=0.25, power=2.0).begin(1)
    first = account.heard(logits, unwritten)
    second = account.heard(logits.flip(-1), unwritten)  # now the other token is the likeliest
    credit = [0.7**2 * 0.25, 0.7**2]
    expected = torch.tensor([0.0, 0.7**2], dtype=torch.float64)
    torch.testing.assert_close(
        first - logits, 0.5 * torch.stack([expected, 0 * expected]).log1p()[None]
    )
    gained = second - logits.flip(-1)
    torch.testing.assert_close(gained[0, 0], 0.5 * torch.tensor(credit[::-1]).double().log1p())
    assert not gained[0, 1].any()


def test_credit_starts_anew_in_each_block():
    policy, logits = Credit(), torch.randn(1, 3, 4, dtype=torch.float64)
    unwritten = torch.ones(1, 3, dtype=torch.bool)
    account = policy.begin(3)
    first, second = account.heard(logits, unwritten), account.heard(logits, unwritten)
    assert not torch.equal(first, second)
    assert torch.equal(policy.begin(3).heard(logits, unwritten), first)


def test_a_threshold_is_reached_by_what_equals_it():
    assert written(Confidence(0.5), [[0.5, 0.5]] * 4) == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        (Confidence(0.9), [1, 0, 0, 0]),
        (FixedCount(1), [1, 0, 0, 0]),
        (EntropyBound(0.0), [1, 0, 0, 0]),
        (Factor(0.0), [1, 0, 0, 0]),
        (Hierarchy(0.9, 0.6), [1, 0, 0, 0]),
        (Hierarchy(0.9, 0.4), [1, 0, 0, 1]),
        (JointThreshold(0.9), [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_ties_go_to_the_left(commit, expected):
    assert written(commit, [[0.5, 0.5]] * 4) == expected


def case(seed):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 6, 5, generator=random, dtype=torch.float64)
    logits[..., 4] = -torch.inf
    return logits, torch.rand(3, 6, generator=random) < 0.6


@given(
    st.integers(0, 10**6),
    st.sampled_from(
        [
            Confidence(0.3), Confidence(2.0), FixedCount(2), EntropyBound(1.0), Sequential(),
            Factor(0.0), Factor(1.0), Hierarchy(), Hierarchy(2.0, 1.5), Credit(), JointThreshold(),
        ]
    ),
)  # fmt: skip
def test_something_open_and_nothing_else(seed, commit):
    logits, unwritten = case(seed)
    policy = commit.begin(6)
    planned = policy.passes(int(unwritten[0].sum()))
    steps = 0
    while True:
        heard = policy.heard(logits, unwritten)
        assert heard[..., 4].isneginf().all()
        write = policy(heard, heard.argmax(-1), unwritten)
        assert not (write & ~unwritten).any()
        assert torch.equal(write.any(1), unwritten.any(1))
        if not unwritten[0].any():
            break
        unwritten = unwritten & ~write
        steps += 1
    assert planned in (None, steps)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 0.9, 1.1]))
def test_parameters_at_which_a_policy_is_another(seed, threshold):
    logits, unwritten = case(seed)
    tokens = logits.argmax(-1)
    plain = Confidence(threshold)(logits, tokens, unwritten)
    credit = Credit(Confidence(threshold), weight=0).begin(6)
    credit.heard(logits, unwritten)
    assert torch.equal(credit.heard(logits, unwritten), logits)
    for other in (Hierarchy(threshold, 1.5), JointThreshold(threshold, 2.0), credit):
        assert torch.equal(other(logits, tokens, unwritten), plain)
    one = FixedCount(1)(logits, tokens, unwritten)
    for other in (Factor(0.0), Hierarchy(2.0, 1.5), Confidence(1.1), JointThreshold(1.1)):
        assert torch.equal(other(logits, tokens, unwritten), one)
    for other in (Factor(float("inf")), Hierarchy(0.0), EntropyBound(float("inf"))):
        assert torch.equal(other(logits, tokens, unwritten), unwritten)


@given(st.integers(0, 10**6))
def test_a_row_does_not_depend_on_others(seed):
    logits, unwritten = case(seed)
    for commit in (Factor(), Hierarchy(), JointThreshold(), EntropyBound(0.5)):
        together = commit(logits, logits.argmax(-1), unwritten)
        for row in range(3):
            one = slice(row, row + 1)
            alone = commit(logits[one], logits[one].argmax(-1), unwritten[one])
            assert torch.equal(alone, together[one])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FixedCount(0), "at least one"),
        (lambda: Factor(-1.0), "0 or more"),
        (lambda: Factor(float("nan")), "0 or more"),
        (lambda: Credit(decay=1.5), "between 0 and 1"),
        (lambda: JointThreshold(rounds=-1), "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
