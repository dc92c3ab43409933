import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.accel.block_cache.bubbling import bubbling_union, scheduled_error, volatility
from fastloop.accel.block_cache.schedule import distances
from fastloop.accel.block_cache.stack import Branch

BRANCHES = [
    Branch(f"layers.{layer}.{kind}", layer, kind)
    for layer in range(3)
    for kind in ("sa", "ca", "ffn")
]
schedules = st.lists(
    st.sets(st.integers(1, 15), max_size=4).map(lambda s: (0, *sorted(s))), min_size=9, max_size=9
)
scores = st.permutations(range(9)).map(lambda p: np.array(p, dtype=float))


def test_volatility_is_the_mean_over_pairs_and_elements():
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for branch, found in zip(x, volatility(distances(x, "l1").numpy()), strict=True):
        pairs = [(branch[i] - branch[j]).abs().mean() for i in range(6) for j in range(i)]
        assert found == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert volatility(distances(x[:, :1], "l1").numpy()).tolist() == [0, 0]


@given(schedules, st.integers(0, 999))
def test_scheduled_error_is_that_of_the_cache_at_updates_of_feed_forwards_downstream(
    schedules, seed
):
    l1 = np.random.default_rng(seed).random((9, 16, 16))
    l1[:, range(16), range(16)] = 0
    for u, found in enumerate(scheduled_error(schedules, BRANCHES, l1)):
        steps = {
            k
            for branch, schedule in zip(BRANCHES, schedules, strict=True)
            if branch.kind == "ffn" and branch.layer >= BRANCHES[u].layer
            for k in schedule
        }
        errors = [l1[u, max(a for a in schedules[u] if a <= k), k] for k in steps]
        assert found == pytest.approx(np.mean(errors))


@given(schedules, st.integers(0, 999))
def test_united_branches_have_no_scheduled_error(schedules, seed):
    l1 = np.random.default_rng(seed).random((9, 16, 16)) * (1 - np.eye(16))
    united = bubbling_union(schedules, BRANCHES, np.zeros(9), 9)
    assert not scheduled_error(united, BRANCHES, l1).any()


def test_without_feed_forwards_downstream_there_is_no_scheduled_error():
    branches = [Branch("layers.0.ffn", 0, "ffn"), Branch("layers.1.sa", 1, "sa")]
    error = scheduled_error([(0, 2), (0,)], branches, np.ones((2, 4, 4)))
    assert error.tolist() == [1, 0]


@given(schedules, scores)
def test_no_branch_to_unite_changes_nothing(schedules, scores):
    assert bubbling_union(schedules, BRANCHES, scores, 0) == schedules


@given(schedules, scores, st.integers(1, 12))
def test_updates_are_only_added_and_only_to_the_volatile(schedules, scores, top):
    united = bubbling_union(schedules, BRANCHES, scores, top)
    for n, (before, after) in enumerate(zip(schedules, united, strict=True)):
        assert set(before) <= set(after)
        assert list(after) == sorted(set(after))
        if scores[n] < 9 - top:
            assert before == after


@given(schedules, scores, st.integers(1, 9), st.randoms())
def test_branches_may_be_taken_in_any_order(schedules, scores, top, random):
    """One by one in place, so that a later branch unites with schedules that already grew."""
    order = [n for n in range(9) if scores[n] >= 9 - top]
    random.shuffle(order)
    one_by_one = list(schedules)
    for u in order:
        for v, branch in enumerate(BRANCHES):
            if branch.kind == "ffn" and branch.layer >= BRANCHES[u].layer:
                one_by_one[u] = tuple(sorted({*one_by_one[u], *one_by_one[v]}))
    assert bubbling_union(schedules, BRANCHES, scores, top) == one_by_one


@pytest.mark.parametrize("top", [1, 2])
def test_a_volatile_branch_is_updated_with_feed_forwards_of_its_layer_and_later(top):
    given_ = [(0, n + 1) for n in range(9)]
    scores = np.array([0, 0, 0, 3, 0, 0, 0, 0, 2.0])  # layers.1.sa, then layers.2.ffn
    united = bubbling_union(given_, BRANCHES, scores, top)
    assert united[3] == (0, 4, 6, 9)
    assert united[8] == given_[8]
    assert [u for n, u in enumerate(united) if n != 3] == [
        g for n, g in enumerate(given_) if n != 3
    ]
