"""Rows of unequal width without what fills them up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Packing"]


@dataclass(frozen=True)
class Packing:
    """Which of the slots of B rows, Q each, hold something: T of them, as one row.

    Attributes:
        rows: B.
        width: Q.
        slots: (T,) int64, among B Q.
    """

    rows: int
    width: int
    slots: torch.Tensor

    @classmethod
    def of(cls, positions: torch.Tensor) -> Packing | None:
        """Of positions (B, Q) or (3, B, Q), negative where a row is filled up.

        None where nothing is, or nothing else is, since no layer has to take a pass over no token
        at all; and on a GPU, where one would have to wait to find out.
        """
        real = positions.reshape(-1, *positions.shape[-2:])[0] >= 0
        if real.device.type != "cpu" or bool(real.all()) or not bool(real.any()):
            return None
        rows, width = real.shape
        return cls(rows, width, real.flatten().nonzero().flatten())

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(1, T, ...) of (B, Q, ...)."""
        return x.flatten(0, 1).index_select(0, self.slots)[None]

    def pack_last(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 1, T) of (..., B, Q)."""
        return x.flatten(-2).index_select(-1, self.slots).unsqueeze(-2)

    def pack_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(1, H, T, D) of (B, H, Q, D)."""
        return self.pack(x.transpose(1, 2)).transpose(1, 2)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(B, Q, ...) of (1, T, ...), zeros where a row is filled up."""
        wide = x.new_zeros(self.rows * self.width, *x.shape[2:])
        return wide.index_copy_(0, self.slots, x[0]).view(self.rows, self.width, *x.shape[2:])

    def spread_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, Q, D) of (1, H, T, D)."""
        return self.spread(x.transpose(1, 2)).transpose(1, 2)
