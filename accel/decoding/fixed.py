"""Keys and values at addresses that stay, which a recorded pass may read and write again."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from fastloop.accel.decoding.kv import KVCache

__all__ = ["Buffers", "FixedKV", "lent"]

SLOTS = 64  # buffers are multiples of it long, so that few lengths come up


class Buffers:
    """Room for the keys and values of L layers, lent to one cache after the other.

    Args:
        like: (B, H, S, D), of whose rows, heads, width, dtype and device they are.
        layers: L.
        slots: at least so many.
        prefix: what branches share; None for a row of its own.

    Attributes:
        keys, values: (L, B, H, S, D); zeros at first, since a slot that is hidden holds a number.
        recorded: whatever passes over them are kept by whoever records them.
    """

    def __init__(
        self, like: torch.Tensor, layers: int, slots: int, prefix: Buffers | None = None
    ) -> None:
        rows, heads, _, width = like.shape
        shape = layers, rows, heads, -(-slots // SLOTS) * SLOTS, width
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.prefix = prefix
        self.recorded: Any = None
        self._holder: weakref.ref[FixedKV] | None = None
        self._branches: list[Buffers] = []

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        return self.keys, self.values

    @property
    def slots(self) -> int:
        """S."""
        return self.keys.shape[3]

    @property
    def free(self) -> bool:
        """Whether no cache holds them any more."""
        return self._holder is None or self._holder() is None

    @property
    def bytes(self) -> int:
        """Memory, without the prefix."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def lend(self, cache: FixedKV) -> None:
        """They are this cache's until it is gone."""
        self._holder = weakref.ref(cache)

    def branches(self, rows: int, slots: int) -> Buffers:
        """Free ones of as many rows, which share these as their prefix."""
        like = self.keys[0].expand(rows, -1, -1, -1)
        return lent(self._branches, like, len(self.keys), slots, self)


class FixedKV(KVCache):
    """A `KVCache` that lies in `Buffers`: of one row, or of branches that share one row's.

    Whoever appends more than there is room for, or goes on from before what branches share, gets an
    ordinary cache from there on.

    Attributes:
        buffers: where it lies; None once it had to move.
    """

    def __init__(self, buffers: Buffers, parent: FixedKV | None = None) -> None:
        super().__init__(len(buffers.keys), buffers.slots)
        buffers.lend(self)
        self.buffers: Buffers | None = buffers
        self._parent = parent  # lives as long as its branches do: they read its buffers
        self._rows = buffers.keys.shape[1]
        self._own = list(zip(buffers.keys, buffers.values, strict=True))

    @property
    def own(self) -> int:
        """Slots in use that are not of a shared prefix."""
        return self.length - self.shared

    def fill(self, cache: KVCache) -> None:
        """Take over what another cache, of one row, holds."""
        for layer in range(self.layers):
            self.write(layer, *cache.read(layer))

    def advance(self, slots: int) -> None:
        """So many were written by a pass that knows where."""
        self._used = [self.length + slots] * self.layers

    def crop(self, slots: int) -> None:
        """See `KVCache.crop`."""
        if self.length - slots < self._lent:
            self.buffers = None
        super().crop(slots)

    def fork(self, rows: int) -> KVCache:
        """See `KVCache.fork`: branches of a row lie in buffers, too, their own branches do not."""
        plain = super().fork(rows)
        if self.buffers is None or self.shared:
            return plain
        branch = FixedKV(self.buffers.branches(rows, self.slots - self.length), self)
        branch.shared, branch.slots, branch.written = plain.shared, plain.slots, plain.written
        branch._prefix, branch._used = plain._prefix, plain._used
        return branch

    def _grown(
        self, held: tuple[torch.Tensor, torch.Tensor], slots: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.buffers = None
        return super()._grown(held, slots)


def lent(
    made: list[Buffers],
    like: torch.Tensor,
    layers: int,
    slots: int,
    prefix: Buffers | None = None,
) -> Buffers:
    """One of those `made` that is free, as wide as `like` and long enough; else a new one, added to
    them. The other arguments are those of `Buffers`."""
    for one in made:
        if one.free and one.keys.shape[1] == len(like) and one.slots >= slots:
            return one
    made.append(Buffers(like, layers, slots, prefix))
    return made[-1]
