"""The order in which training visits its samples."""

from __future__ import annotations

import torch

__all__ = ["rows_of_step"]


def rows_of_step(step: int, size: int, *, samples: int, seed: int) -> torch.Tensor:
    """The rows (size,) of a training step's batch, the same whenever they are asked for: resuming
    needs no state.

    Each epoch visits every sample once, in an order drawn from (seed, epoch); batches are always
    full and run over from one epoch into the next.
    """
    places = torch.arange(step * size, (step + 1) * size)
    first, last = int(places[0]) // samples, int(places[-1]) // samples
    orders = [_order(samples, seed * 1_000_003 + epoch) for epoch in range(first, last + 1)]
    return torch.cat(orders)[places - first * samples]


def _order(samples: int, seed: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
