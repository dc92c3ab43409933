"""How predictable actions are: against least squares, a known process, and whatever the scale."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.sims.predictability import (
    ActionMoments,
    action_predictability,
    moments_of,
    predict,
)


def process(episodes=30, ticks=60, noise=0.1, first=1.4, second=-0.6, dim=2, seed=0):
    """Episodes of an autoregression of second order, each element by itself."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(episodes):
        actions = list(random.normal(size=(2, dim)))
        for _ in range(ticks - 2):
            step = first * actions[-1] + second * actions[-2]
            actions.append(step + noise * random.normal(size=dim))
        made.append(np.array(actions))
    return made


def by_lstsq(episodes, reference):
    """The same with every sample written out."""
    answers = np.concatenate([actions[2:] for actions in reference])
    mean, std = answers.mean(0), answers.std(0)
    scaled = [(actions - mean) / std for actions in episodes]

    def samples(some):
        x = [np.hstack([np.ones((len(a) - 2, 1)), a[1:-1], a[:-2]]) for a in some]
        return np.concatenate(x), np.concatenate([a[2:] for a in some])

    x, y = samples([a for i, a in enumerate(scaled) if i % 10])
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    x, y = samples(scaled[::10])
    return ((y - x @ weights) ** 2).mean(), y.size // y.shape[1]


@pytest.mark.parametrize("expert", [False, True])
def test_the_error_is_that_of_least_squares(expert):
    ours, theirs = process(), process(episodes=21, noise=0.3, seed=1)
    found = action_predictability(ours, theirs if expert else None)
    error, n = by_lstsq(ours, theirs if expert else ours)
    assert found.error == pytest.approx(error, rel=1e-4)
    assert found.n == n == 3 * 58
    if expert:
        assert found.expert_error == pytest.approx(by_lstsq(theirs, theirs)[0], rel=1e-4)
        assert found.ratio == pytest.approx(found.expert_error / found.error)
    else:
        assert math.isnan(found.ratio)


def test_a_known_process_is_recovered():
    """What cannot be foretold of an autoregression is its noise."""
    found = action_predictability(actions := process(200, 100, noise=0.5))
    variance = np.concatenate([episode[2:] for episode in actions]).var(0).mean()
    assert found.error * variance == pytest.approx(0.25, rel=0.05)
    assert action_predictability(process(noise=1e-3, second=-0.9)).error < 1e-4
    white = np.random.default_rng(0).normal(size=(200, 50, 3))
    assert action_predictability(white).error == pytest.approx(1, rel=0.05)


def test_the_ratio_tells_copies_from_jitter():
    expert = process(100, noise=0.2)
    jitter = [a + np.random.default_rng(i).normal(size=a.shape) for i, a in enumerate(expert)]
    smooth = process(100, noise=0.02)
    assert action_predictability(expert, expert).ratio == 1
    assert action_predictability(jitter, expert).ratio < 0.3
    assert action_predictability(smooth, expert).ratio > 10


@settings(max_examples=15, deadline=None)
@given(
    scale=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=2),
    shift=st.lists(st.floats(-100, 100), min_size=2, max_size=2),
)
def test_units_do_not_matter(scale, shift):
    ours, theirs = process(12, 20), process(12, 20, noise=0.3, seed=1)

    def moved(episodes):
        return [episode * scale + np.multiply(shift, scale) for episode in episodes]

    one, other = (
        action_predictability(ours, theirs),
        action_predictability(moved(ours), moved(theirs)),
    )
    assert other.error == pytest.approx(one.error, rel=1e-6)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=0, max_size=12))
def test_moments_are_the_same_tick_by_tick_and_hold_every_pair_of_products(lengths):
    random = np.random.default_rng(len(lengths))
    for ticks in lengths:
        actions = random.normal(size=(ticks, 2))
        moments = ActionMoments()
        for action in actions:
            moments.add(action)
        packed = moments.packed()
        assert packed == moments_of(actions)
        assert len(packed) == (28 if ticks > 2 else 0)
        if packed:
            z = np.hstack([np.ones((ticks - 2, 1)), actions[1:-1], actions[:-2], actions[2:]])
            np.testing.assert_allclose(packed, (z.T @ z)[np.triu_indices(7)], atol=1e-12)


def test_short_episodes_are_left_out():
    ours = process(12)
    short = [np.zeros((2, 2)), *ours, np.zeros((0, 2))]
    assert action_predictability(short) == action_predictability(ours)


@pytest.mark.parametrize("episodes", [[], [[]], [moments_of(np.ones((9, 2)))]])
def test_too_few_episodes_say_nothing(episodes):
    found = predict(episodes)
    assert math.isnan(found.error)
    assert found.n == 0
    assert math.isnan(found.ratio)


def test_one_demonstration_gives_the_scale_and_no_ratio():
    found = action_predictability(process(12), process(1))
    assert found.error > 0
    assert math.isnan(found.ratio)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_an_element_that_stays_is_foretold(value):
    still = [np.hstack([episode, np.full((len(episode), 1), value)]) for episode in process()]
    error = action_predictability(process()).error
    assert action_predictability(still).error == pytest.approx(error * 2 / 3, rel=1e-3)
    assert action_predictability(np.full((5, 9, 1), value)).error < 1e-12


def test_actions_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="2 elements cannot be compared with demonstrations of 3"):
        action_predictability(process(), process(dim=3))
