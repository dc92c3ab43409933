"""Noise of training: levels by section and block, copies that complement each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.vla.masks import PADDING
from fastloop.policies.vla.noise import UNIFORM, complementary, masking_probability


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_block_has_one_level_and_others_have_others():
    block = torch.tensor([[0, 0, 0, 1, 1, PADDING], [0, 1, 1, 1, 2, 2]])
    section = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    p = masking_probability(block, section, [UNIFORM, UNIFORM], generator=generator())
    assert p.shape == block.shape
    assert p[0, 0] == p[0, 1] == p[0, 2]
    assert p[1, 1] == p[1, 2]
    assert p[1, 4] == p[1, 5]
    levels = [p[0, 0], p[0, 3], p[1, 0], p[1, 1], p[1, 3], p[1, 4]]
    assert len({float(level) for level in levels}) == len(levels)


@pytest.mark.parametrize(("a", "b"), [(1, 2), (1, 1), (1, 1.5), (2, 1), (0.5, 3)])
def test_levels_are_drawn_from_the_section_s_beta(a, b):
    block = torch.arange(20_000)[None]
    section = torch.ones_like(block)
    p = masking_probability(block, section, [(5, 1), (a, b)], generator=generator(), eps=0.0)[0]
    mean, variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
    assert float(p.mean()) == pytest.approx(mean, abs=5 * np.sqrt(variance / 20_000))
    assert float(p.var()) == pytest.approx(variance, rel=0.05)


def test_the_least_probability():
    block = torch.arange(5_000)[None]
    p = masking_probability(
        block, torch.zeros_like(block), [(0.05, 5)], generator=generator(), eps=0.25
    )
    assert 0.25 <= float(p.min()) < 0.2501
    assert float(p.max()) <= 1


def test_the_same_seed_draws_the_same():
    block = torch.arange(12).view(2, 6) // 2 % 3
    section = torch.zeros_like(block)
    free = torch.ones_like(block, dtype=torch.bool)

    def draw(seed):
        random = generator(seed)
        p = masking_probability(block, section, [UNIFORM], generator=random)
        return complementary(p, free=free, always=~free, generator=random)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**30), st.floats(0, 1))
def test_every_value_is_masked_once_scaffold_never_and_the_stop_twice(seed, level):
    random = generator(seed)
    scaffold = torch.rand(3, 40, generator=random) < 0.3
    stop = torch.zeros(3, 40, dtype=torch.bool)
    stop[:, 36] = True
    scaffold[:, 36] = False
    padding = torch.arange(40).expand(3, -1) > 36
    masked = complementary(
        torch.full((3, 40), level), free=~scaffold & ~padding, always=stop, generator=random
    )
    values = ~scaffold & ~padding & ~stop
    assert masked.shape == (2, 3, 40)
    assert (masked.sum(0)[values] == 1).all()
    assert not masked[:, scaffold | padding].any()
    assert masked[:, stop].all()


def test_as_many_are_masked_as_the_level_says():
    level = torch.tensor([0.1, 0.5, 0.9])[:, None].expand(-1, 20_000)
    free = torch.ones_like(level, dtype=torch.bool)
    masked = complementary(level, free=free, always=~free, generator=generator())
    rates = masked[0].float().mean(1)
    assert rates.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


def test_scaffold_that_looks_like_a_stop_is_still_scaffold():
    free = torch.zeros(1, 4, dtype=torch.bool)
    masked = complementary(
        torch.ones(1, 4), free=free, always=torch.ones_like(free), generator=generator()
    )
    assert not masked.any()
