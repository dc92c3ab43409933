"""What a forecaster of futures learns from: pasts and what followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Samples", "condition_of"]

CONDITIONS = ("history", "command", "neighbors")


@dataclass(frozen=True)
class Samples:
    """n pairs of a past and a future, float32, each as its agent sees it.

    Attributes:
        history: (n, O, H), oldest first: positions, or whatever an observation holds.
        future: (n, T, F): positions, or actions.
        command: (n, C), or None.
        neighbors: (n, P, ...) what is seen of each of up to P others, NaN where there is none; or
            None.
    """

    history: torch.Tensor
    future: torch.Tensor
    command: torch.Tensor | None = None
    neighbors: torch.Tensor | None = None

    def __post_init__(self) -> None:
        parts = self.rows(slice(None))
        lengths = {name: len(part) for name, part in parts.items()}
        if len(set(lengths.values())) > 1 or not len(self.future):
            raise ValueError(f"samples must be some, and all parts of one length, got {lengths}")
        for name, part in parts.items():
            if name != "neighbors" and not part.isfinite().all():
                raise ValueError(f"{name} must hold finite numbers only")

    def __len__(self) -> int:
        return len(self.future)

    def rows(self, rows: slice | torch.Tensor) -> dict[str, torch.Tensor]:
        """Some of them, by the names of the parts that there are."""
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return {name: part[rows] for name, part in parts.items()}

    def some(self, rows: slice | torch.Tensor) -> Samples:
        """Some of them."""
        return Samples(**self.rows(rows))

    def batch(self, step: int, size: int, seed: int) -> dict[str, torch.Tensor]:
        """The batch of a training step, the same whenever it is asked for.

        Each epoch visits every sample once, in an order drawn from (seed, epoch); batches are
        always full and run over from one epoch into the next.
        """
        places = torch.arange(step * size, (step + 1) * size)
        first, last = int(places[0]) // len(self), int(places[-1]) // len(self)
        orders = torch.cat([self._order(epoch, seed) for epoch in range(first, last + 1)])
        return self.rows(orders[places - first * len(self)])

    def _order(self, epoch: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self), generator=generator)


def condition_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of a batch that are known now."""
    return {name: batch[name] for name in CONDITIONS if name in batch}
