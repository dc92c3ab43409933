"""Keys and values of what was read: appended, cut back, and shared by branches."""

from __future__ import annotations

import torch

__all__ = ["KVCache"]


class KVCache:
    """Keys and values (L layers) of B rows, in buffers of a fixed number of slots.

    Branches of one prefix share its memory: `fork` copies nothing, and each branch writes into
    slots of its own.

    Attributes:
        length: slots in use, the prefix's included.
    """

    length: int

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep (B, H, Q, D) of one layer; gives all (B, H, length + Q, D) of that layer.

        `length` grows when the last layer has been appended.
        """
        raise NotImplementedError

    def crop(self, slots: int) -> None:
        """Forget the last `slots`."""
        raise NotImplementedError

    def fork(self, rows: int) -> KVCache:
        """`rows` branches of a single row, which share what it holds."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory in use, a shared prefix counted once."""
        raise NotImplementedError
