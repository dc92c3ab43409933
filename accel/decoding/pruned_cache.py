"""Keys and values of which later layers hold fewer than earlier ones."""

from __future__ import annotations

import copy
import math

import torch

from fastloop.accel.decoding.kv import KVCache

__all__ = ["PrunedCache"]


class PrunedCache(KVCache):
    """What was read, of which later layers hold less: to a driver a cache of all of it.

    Args:
        layers: L.
        slots: for how many tokens buffers are made.
        layer: the first of the later layers.
        keep: when how much of the prompt stays, as of `Pruned`.
        droppable: (B, P) bool, slots of the prompt that may go.

    Attributes:
        early, late: of the layers before `layer`, and of those from it on.
        keep: what of it is still to come.
        passes: since the prompt.
        columns: (B, K) int64, which of the first slots the later layers still hold; all that came
            behind those are held.
        real: (B, K) bool, False for columns that only fill up a row.
        scores: None, or (B, P or more), by which the prompt is to be cut before the next pass.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        layer: int,
        keep: tuple[tuple[int, float], ...],
        droppable: torch.Tensor,
    ) -> None:
        super().__init__(layers, slots)
        # A cache has layers: where no layer is early, or none late, one stays empty.
        self.early, self.late = (KVCache(max(1, n), slots) for n in (layer, layers - layer))
        self._depth, self.keep, self.passes = layer, keep, 0
        self.columns = torch.zeros(len(droppable), 0, dtype=torch.int64, device=droppable.device)
        self.real = self.columns.bool()
        self.scores: torch.Tensor | None = None
        self._droppable, self._counts = droppable, droppable.sum(1).tolist()
        self._cut = 0  # slots that `columns` speak of

    @property
    def length(self) -> int:
        """Slots in use, those included that later layers do not hold."""
        if self._depth:
            return self.early.length
        return self.late.length + self._cut - self.columns.shape[1]

    def crop(self, slots: int) -> None:
        """See `KVCache.crop`."""
        for part in self._parts:
            part.crop(slots)
        if self.written is not None:
            self.written = self.written[:, : self.length]

    def fork(self, rows: int) -> PrunedCache:
        """See `KVCache.fork`.

        Raises:
            ValueError: also when part of the prompt is still to go: branches share its memory.
        """
        if self.keep:
            raise ValueError(
                f"branches share a prompt of which part goes after {self.keep[0][0]} passes, and "
                f"there were {self.passes}: prune before they branch"
            )
        branch = copy.copy(self)
        for name, part in zip(("early", "late"), (self.early, self.late), strict=True):
            if part in self._parts:
                setattr(branch, name, part.fork(rows))
        branch.columns = self.columns.expand(rows, -1)
        branch.real = self.real.expand(rows, -1)
        if self.written is not None:
            branch.written = self.written.expand(rows, -1)
        return branch

    @property
    def bytes(self) -> int:
        """See `KVCache.bytes`."""
        return sum(part.bytes for part in self._parts)

    def seen(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask (B, Q, S) over all slots for the later layers."""
        columns = self.columns[:, None].expand(-1, mask.shape[1], -1)
        held = mask.gather(2, columns) & self.real[:, None]
        return torch.cat([held, mask[:, :, self._cut :]], 2)

    def spread(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, S) of the slots that later layers hold, as (B, S') of all."""
        held = self.columns.shape[1]
        first, behind = scores[:, :held], scores[:, held:]
        none = scores.new_zeros(len(scores), self._cut)
        return torch.cat([none.scatter(1, self.columns, first), behind], 1)

    def narrow(self, length: int) -> None:
        """Drop, of `length` slots, what the next entry of the schedule says, by the scores."""
        assert self.scores is not None
        share, self.keep = self.keep[0][1], self.keep[1:]
        kept = [math.ceil(share * count - 1e-9) for count in self._counts]
        device, rows = self.columns.device, len(self.columns)
        behind = torch.arange(self._cut, length, device=device).expand(rows, -1)
        held = torch.cat([self.columns, behind], 1)
        real = torch.cat([self.real, torch.ones_like(behind, dtype=torch.bool)], 1)
        # Those that went before come last, and shares only fall: they stay away.
        alive = torch.zeros(rows, length + 1, dtype=torch.bool, device=device)
        alive = alive.scatter(1, held.where(real, length), True)[:, : self._droppable.shape[1]]
        scores = self.scores[:, : self._droppable.shape[1]]
        scores = scores.masked_fill(~(self._droppable & alive), -math.inf)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stays = ~self._droppable | (rank < torch.tensor(kept, device=device)[:, None])
        stays = torch.nn.functional.pad(stays, (0, length - stays.shape[1]), value=True)
        real = real & stays.gather(1, held)
        widest = max(length - count + stay for count, stay in zip(self._counts, kept, strict=True))
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :widest]
        if self.late.length:
            self.late = _gathered(self.late, order)
        self.columns, self.real = held.gather(1, order), real.gather(1, order)
        self._cut, self.scores = length, None

    @property
    def _parts(self) -> list[KVCache]:
        parts = [self.early] if self._depth else []
        return [*parts, self.late] if self._depth < self.layers else parts


def _gathered(kv: KVCache, slots: torch.Tensor) -> KVCache:
    """A cache of some slots (B, K) of another, with room for as many as that."""
    gathered = KVCache(kv.layers, kv.slots)
    for layer in range(kv.layers):
        keys, values = (
            part.gather(2, slots[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
            for part in kv.read(layer)
        )
        gathered.write(layer, keys, values)
    return gathered
