"""Every item is handed out until it ends, and ends exactly once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.worklist import WorkItem, WorkList


@given(
    n=st.integers(0, 12),
    done=st.sets(st.integers(0, 15)),
    retries=st.integers(0, 2),
    breaks=st.lists(st.booleans(), max_size=60),
)
def test_every_item_ends_once_whatever_breaks(n, done, retries, breaks):
    work = WorkList(
        [WorkItem("t", seed) for seed in range(n)],
        finished={("t", seed) for seed in done},
        retries=retries,
    )
    breaks = iter(breaks)
    tries: Counter = Counter()
    ended = []
    while item := work.take():
        tries[item.seed] += 1
        if next(breaks, False) and work.retry(item):
            continue
        work.finish(item)
        ended.append(item.seed)
    assert sorted(ended) == sorted(set(range(n)) - done)
    assert all(count <= retries + 1 for count in tries.values())
    assert work.missing == ()


def test_missing_names_what_was_taken_and_not_finished():
    work = WorkList([WorkItem("t", 1), WorkItem("t", 2)])
    first = work.take()
    work.take()
    work.finish(first)
    assert work.missing == (WorkItem("t", 2),)


def test_two_equal_items_are_refused():
    with pytest.raises(ValueError, match=r"more than one episode of \[\('t', 1\)\]"):
        WorkList([WorkItem("t", 1), WorkItem("t", 1)])


def test_noise_is_keyed_by_the_item_alone():
    numbers = [WorkItem(task, seed).episode for task in ("a", "b") for seed in range(100)]
    assert len(set(numbers)) == 200
    assert WorkItem("pusht", 7).episode == 239204624160377  # fixed for good: old runs stay paired
