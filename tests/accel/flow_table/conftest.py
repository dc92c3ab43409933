"""Mixtures and tables to ask."""

import pytest
import torch

from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.table import FlowTable


@pytest.fixture
def mixture():
    """A function (A, M, d) -> `Mixture`, of any spread."""

    def make(A=3, M=5, d=4, *, seed=0, spread=1.0, dtype=torch.float64):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        parts = (
            (2 * normal(A, M)).log_softmax(-1),
            normal(A, M, d),
            spread * (0.05 + normal(A, M, d).square()),
        )
        return Mixture(*(part.to(dtype) for part in parts))

    return make


@pytest.fixture
def table():
    """A function (K, d) -> `FlowTable` of normal points, (T, F) = (3, 2)."""

    def make(K=40, d=4, *, seed=1, dtype=torch.float64, feasible=None):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        return FlowTable.of(normal(K, d), normal(K), normal(K), normal(K, 3, 2), feasible)

    return make
