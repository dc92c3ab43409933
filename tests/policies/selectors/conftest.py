"""Candidates made of numbers."""

import pytest
import torch

from fastloop.policies.history import Executed, History
from fastloop.policies.rng import Rng
from fastloop.policies.selectors import Candidates


def build(future, past=None, executed=None, *, known=None, overridden=None, previous=None,
          planned=None, lags=None):  # fmt: skip
    """`future` (B, N, T, A), the rest by default of two past actions that were all 0."""
    future = torch.as_tensor(future, dtype=torch.float64)
    batch, _, ticks, dim = future.shape
    past = future.new_zeros(batch, future.shape[1], 2, dim) if past is None else past
    steps = past.shape[2]
    executed = future.new_zeros(batch, steps, dim) if executed is None else executed
    finite = future.isfinite().all(-1).all(-1) & past.isfinite().all(-1).all(-1)
    none = torch.zeros(batch, steps, dim, dtype=torch.bool)
    every = torch.ones(batch, steps, dtype=torch.bool)
    return Candidates(
        actions=future,
        future=future,
        past=past,
        allowed=finite,
        executed=Executed(
            executed,
            every if known is None else known,
            none if overridden is None else overridden,
        ),
        previous=future.new_zeros(batch, ticks, dim) if previous is None else previous,
        planned=torch.ones(batch, ticks, dtype=torch.bool) if planned is None else planned,
        lags=tuple(range(steps, 0, -1)) if lags is None else lags,
        history=History(((),) * batch, ((),) * batch, torch.zeros(batch, dtype=torch.int64)),
        rng=Rng.for_envs(0, range(batch), [0] * batch),
        compare=lambda actions: actions,
    )


@pytest.fixture(scope="session")
def candidates():
    """A function (future, past, executed, ...) -> Candidates."""
    return build


@pytest.fixture(scope="session")
def drawn():
    """A function (seed, batch, samples) -> random `build` arguments of 3 ticks and 2 elements."""

    def draw(seed, batch=2, samples=5):
        source = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=source, dtype=torch.float64)

        return {
            "future": normal(batch, samples, 3, 2),
            "past": normal(batch, samples, 2, 2),
            "executed": normal(batch, 2, 2),
            "previous": normal(batch, 3, 2),
        }

    return draw
