"""What a forecaster of futures learns from: pasts and what followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastloop.policies.epochs import rows_of_step

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
        """The batch of a training step, see `rows_of_step`."""
        return self.rows(rows_of_step(step, size, samples=len(self), seed=seed))


def condition_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of a batch that are known now."""
    return {name: batch[name] for name in CONDITIONS if name in batch}
