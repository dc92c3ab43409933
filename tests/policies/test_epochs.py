"""The order of training samples."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.epochs import rows_of_step


@given(samples=st.integers(1, 20), size=st.integers(1, 30), seed=st.integers(0, 9))
def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own(samples, size, seed):
    steps = -(-3 * samples // size)
    parts = [rows_of_step(step, size, samples=samples, seed=seed) for step in range(steps)]
    assert all(len(part) == size for part in parts)
    rows = torch.cat(parts)
    epochs = rows[: 3 * samples].view(3, samples)
    assert torch.equal(epochs.sort(1).values, torch.arange(samples).expand(3, -1))
    again = rows_of_step(steps - 1, size, samples=samples, seed=seed)
    assert torch.equal(again, parts[-1]), "whatever was asked for before"


def test_epochs_and_seeds_differ():
    first = rows_of_step(0, 100, samples=100, seed=0)
    assert not torch.equal(first, rows_of_step(1, 100, samples=100, seed=0))
    assert not torch.equal(first, rows_of_step(0, 100, samples=100, seed=1))
