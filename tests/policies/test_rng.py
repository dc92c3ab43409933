"""Noise of one environment's tick, whatever runs beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.rng import Rng

SEEDS = st.integers(0, 2**32 - 1)
EPISODES = st.integers(0, 2**48 - 1)
TICKS = st.integers(0, 10_000)
KEYS = st.tuples(SEEDS, EPISODES, TICKS)


@given(st.lists(KEYS, min_size=1, max_size=6), st.data())
def test_a_row_is_the_same_in_every_batch(keys, data):
    batch = Rng(tuple(keys)).normal((2, 3))
    row = data.draw(st.integers(0, len(keys) - 1))
    assert torch.equal(batch[row], Rng((keys[row],)).normal((2, 3))[0])


@given(KEYS, KEYS)
def test_different_keys_give_different_noise(one, other):
    first, second = Rng((one, other)).normal((4,))
    assert torch.equal(first, second) == (one == other)


@pytest.mark.parametrize("other", [(8, 3, 5), (7, 4, 5), (7, 3, 6), (3, 7, 5), (7, 5, 3)])
def test_every_part_of_the_key_counts(other):
    first, second = Rng(((7, 3, 5), other)).normal((64,))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.5


def test_streams_are_independent():
    rng = Rng(((7, 3, 5),))
    noise, mask = rng.normal((1000,)), rng.normal((1000,), stream="mask")
    assert torch.corrcoef(torch.cat([noise, mask]))[0, 1].abs() < 0.15
    assert torch.equal(noise, rng.normal((1000,), stream="noise"))


@pytest.mark.parametrize("shape", [(), (5,), (100, 16, 2)])
def test_shape_and_type(shape):
    noise = Rng.for_envs(0, [0, 1, 2], [0, 0, 0]).normal(shape)
    assert noise.shape == (3, *shape)
    assert noise.dtype == torch.float32


def test_it_is_standard_normal():
    noise = Rng.for_envs(0, range(100), [0] * 100).normal((1000,))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_for_envs_keys_by_episode_and_tick():
    rng = Rng.for_envs(9, [4, np.int64(5)], torch.tensor([1, 2]))
    assert rng.keys == ((9, 4, 1), (9, 5, 2))
    assert len(rng) == 2
    with pytest.raises(ValueError, match="zip"):
        Rng.for_envs(9, [4, 5], [1])


def test_the_numbers_are_those_of_every_numpy():
    """Results that were published with a seed must come out again: never change these."""
    expected = [
        [2.026949167, -0.430996895, 0.622802079],
        [0.155464292, -0.267697364, 0.826784849],
    ]
    noise = Rng(((0, 0, 0), (1, 2**40 + 3, 17))).normal((3,))
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=0, atol=1e-7)
