"""The first open slots of each row, and what they attend to."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.layered import attention_weights

__all__ = ["Front", "put", "taken"]


class Front:
    """The first open slots of each row.

    Args:
        open: (B, N) bool.
        count: how many.

    Attributes:
        slots: (B, N) bool.
    """

    def __init__(self, open: torch.Tensor, count: int) -> None:
        self.open, self.slots = open, open & (open.cumsum(1) <= count)
        self._at = (~self.slots).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        self._real = self.slots.gather(1, self._at)

    def most_attended(
        self, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The token (B, 1) that is not open and gets most of the attention from these slots.

        Keys (B, Hk, P + N, D) and mask (B, N, P + N) may begin with a prompt, which is none.
        """
        asking = taken(queries.transpose(1, 2), self._at).transpose(1, 2)
        weights = attention_weights(asking, keys, taken(mask, self._at), scale).mean(1)
        received = (weights * self._real[..., None]).sum(1)[:, -self.open.shape[1] :]
        return received.masked_fill(self.open, -1.0).argmax(1, keepdim=True)


def taken(of: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows (B, Q, ...) of (B, N, ...) at (B, Q)."""
    return of[torch.arange(len(of), device=of.device)[:, None], at]


def put(into: torch.Tensor, at: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(B, N, ...) with rows (B, Q, ...) at (B, Q), those that are named twice being equal."""
    into = into.clone()
    into[torch.arange(len(into), device=into.device)[:, None], at] = new
    return into
