"""Chunks of actions, executed tick by tick."""

import math

import pytest
import torch

from fastloop.policies.chunks import RecedingHorizon, TemporalEnsemble


def plan(first, length=6):
    """Actions that say for which tick they were planned, and by whom."""
    return torch.stack([torch.tensor([first + i, first], dtype=torch.float) for i in range(length)])


def taken(chunk, n):
    return [chunk.next()[0].item() for _ in range(n)]


def test_receding_horizon_executes_its_share_and_is_due_again():
    chunk = RecedingHorizon(3).start()
    assert chunk.due()
    chunk.install(plan(0))
    dues = []
    for _ in range(3):
        dues.append(chunk.due())
        chunk.next()
    assert dues == [False] * 3
    assert chunk.due()
    chunk.install(plan(10))
    assert taken(chunk, 3) == [10, 11, 12]


@pytest.mark.parametrize(
    ("late", "expected"), [(0, [0, 1, 2]), (1, [1, 2]), (2, [2]), (3, [3]), (5, [5])]
)
def test_the_ticks_that_planning_took_are_skipped(late, expected):
    chunk = RecedingHorizon(3).start()
    chunk.install(plan(0), late=late)
    assert taken(chunk, len(expected)) == expected
    assert chunk.due()


def test_an_exhausted_chunk_runs_on_to_its_end_and_holds_its_last_action():
    chunk = RecedingHorizon(2).start()
    chunk.install(plan(0, length=4))
    assert taken(chunk, 6) == [0, 1, 2, 3, 3, 3]


def test_a_plan_that_comes_after_its_end_changes_nothing():
    chunk = RecedingHorizon(2).start()
    chunk.install(plan(0))
    taken(chunk, 2)
    chunk.install(plan(2), late=6)
    assert chunk.due()
    assert taken(chunk, 1) == [1]


@pytest.mark.parametrize("chunking", [RecedingHorizon(2), TemporalEnsemble()])
def test_no_action_before_the_first_plan(chunking):
    with pytest.raises(RuntimeError, match="before the episode's first plan"):
        chunking.start().next()


@pytest.mark.parametrize("chunking", [RecedingHorizon(2), TemporalEnsemble()])
def test_episodes_share_nothing(chunking):
    one, other = chunking.start(), chunking.start()
    one.install(plan(0))
    assert other.due()


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
def test_the_ensemble_is_a_weighted_mean_of_all_live_plans(decay):
    random = torch.Generator().manual_seed(0)
    plans = torch.randn(9, 4, 2, generator=random)  # plan i speaks of ticks i .. i + 3
    chunk = TemporalEnsemble(decay).start()
    for tick in range(9):
        assert chunk.due()
        chunk.install(plans[tick])
        assert not chunk.due()
        live = [i for i in range(9) if i <= tick < i + 4]
        weights = [math.exp(-decay * rank) for rank in range(len(live))]
        expected = sum(
            w / sum(weights) * plans[i, tick - i] for w, i in zip(weights, live, strict=True)
        )
        torch.testing.assert_close(chunk.next(), expected)


def test_the_ensemble_skips_the_ticks_that_planning_took():
    chunk = TemporalEnsemble(0.0).start()
    chunk.install(plan(0))
    chunk.next()
    held = [chunk.next() for _ in range(2)]  # the world went on for two ticks meanwhile
    assert [action[0].item() for action in held] == [1, 2]
    chunk.install(plan(1), late=2)
    action = chunk.next()
    assert action[0] == 3, "both plans say what they planned for tick 3"
    assert action[1] == 0.5, "and both are heard"


def test_an_exhausted_ensemble_holds_its_last_action():
    chunk = TemporalEnsemble().start()
    chunk.install(plan(0, length=2))
    assert taken(chunk, 4) == [0, 1, 1, 1]
    chunk.install(plan(4, length=2), late=2)
    assert taken(chunk, 1) == [1]
    assert chunk.due()


@pytest.mark.parametrize("chunking", [RecedingHorizon(2), TemporalEnsemble(0.1)])
def test_what_lies_ahead_is_what_is_then_executed(chunking):
    chunk = chunking.start()
    for plan in (torch.arange(6.0)[:, None], torch.randn(6, 1, generator=torch.manual_seed(0))):
        chunk.install(plan)
        chunk.next()
    new = torch.arange(10.0, 15.0)[:, None]
    ahead = chunk.ahead(new)
    assert torch.equal(chunk.ahead(new), ahead)  # looking changes nothing
    chunk.install(new)
    assert torch.equal(torch.stack([chunk.next() for _ in new]), ahead)
