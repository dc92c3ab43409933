"""Keys and values of what was read: appended, cut back, and shared by branches."""

from __future__ import annotations

import torch

__all__ = ["KVCache"]

KeysValues = tuple[torch.Tensor, torch.Tensor]


class KVCache:
    """Keys and values (L layers) of B rows, in buffers that are made once and written in place.

    Branches of one prefix share its memory: `fork` copies nothing, and each branch writes into
    slots of its own. Rows, heads, widths, dtype and device are those of what is appended first;
    a buffer that is too small is replaced by one of twice the slots.

    Attributes:
        layers: L.
        slots: for how many tokens buffers are made, a shared prefix included.
        shared: P, slots at the start that belong to a prefix of several branches; 0 where none do.
        written: None, or (B, length) int64 for whoever checks his own work: which token was read
            into a slot, -1 where nobody said.
    """

    def __init__(self, layers: int, slots: int) -> None:
        if layers < 1 or slots < 1:
            raise ValueError(f"a cache has layers and slots, got {layers} and {slots}")
        self.layers, self.slots, self.shared = layers, slots, 0
        self.written: torch.Tensor | None = None
        self._rows = 0
        self._lent = 0
        self._used = [0] * layers
        self._prefix: list[KeysValues] = []
        self._own: list[KeysValues] = []

    @property
    def length(self) -> int:
        """Slots in use, the prefix's included; grows when the last layer has been written."""
        return self._used[-1]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep (B, H, Q, D) of one layer; layers come in their order."""
        if not self._rows:
            self._rows = len(keys)
        if keys.shape != values.shape or len(keys) != self._rows:
            raise ValueError(
                f"keys and values are both (B, H, Q, D) with B = {self._rows}, got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
        start = self._used[layer] - self.shared
        stop = start + keys.shape[2]
        if layer == len(self._own):
            self._own.append(self._grown((keys[:, :, :0], values[:, :, :0]), stop))
        elif self._own[layer][0].shape[2] < stop:
            self._own[layer] = self._grown(self._own[layer], stop)
        for buffer, new in zip(self._own[layer], (keys, values), strict=True):
            buffer[:, :, start:stop] = new
        self._used[layer] += keys.shape[2]

    def _grown(self, held: KeysValues, slots: int) -> KeysValues:
        rows, heads, kept, width = held[0].shape
        slots = max(slots, 2 * kept, self.slots - self.shared)
        buffers = [part.new_empty(rows, heads, slots, width) for part in held]
        for buffer, part in zip(buffers, held, strict=True):
            buffer[:, :, :kept] = part
        return buffers[0], buffers[1]

    def read(self, layer: int) -> KeysValues:
        """All (B, H, S, D) of one layer: a view, but a copy where a prefix is shared."""
        prefix, suffix = self.prefix_parts(layer)
        if not self.shared:
            return suffix
        keys, values = (
            torch.cat([one.expand(self._rows, -1, -1, -1), many], 2)
            for one, many in zip(prefix, suffix, strict=True)
        )
        return keys, values

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """`write`, then `read`: all (B, H, length + Q, D) of that layer."""
        self.write(layer, keys, values)
        return self.read(layer)

    def prefix_parts(self, layer: int) -> tuple[KeysValues, KeysValues]:
        """Views of the prefix (1, H, P, D) that all branches share, and of their own (B, H, S, D).

        So that attention to the prefix may be computed once for all branches.
        """
        kept = self._used[layer] - self.shared
        if layer < len(self._own):
            keys, values = self._own[layer]
            own = keys[:, :, :kept], values[:, :, :kept]
            none = keys[:1, :, :0], values[:1, :, :0]
        else:
            keys, values = none = self._prefix[layer]
            rows, heads, width = self._rows, keys.shape[1], keys.shape[3]
            own = keys.new_empty(rows, heads, 0, width), values.new_empty(rows, heads, 0, width)
        return (self._prefix[layer] if self.shared else none), own

    def crop(self, slots: int) -> None:
        """Forget the last `slots`; nothing is copied.

        Raises:
            ValueError: when there are not so many, or they belong to a shared prefix.
        """
        kept = self.length - slots
        if slots < 0 or kept < self.shared:
            raise ValueError(
                f"asked to forget the last {slots} of {self.length} slots, of which the first "
                f"{self.shared} are shared with other branches"
            )
        self._used = [kept] * self.layers
        if kept < self._lent:  # branches still read it: what comes next is written elsewhere
            self._own = [(keys[:, :, :kept], values[:, :, :kept]) for keys, values in self._own]
            self._lent = 0
        if self.written is not None:
            self.written = self.written[:, :kept]

    def fork(self, rows: int) -> KVCache:
        """`rows` branches of a single row, which share what it holds; the row may go on itself.

        Raises:
            ValueError: when there are several rows, or none has been read.
        """
        if self._rows != 1 or rows < 1:
            raise ValueError(
                f"a single row that has read something branches into one row or more, got "
                f"{self._rows} rows to branch into {rows}"
            )
        branch = KVCache(self.layers, max(self.slots, self.length + 1))
        branch._prefix = [self.read(layer) for layer in range(self.layers)]
        branch.shared, branch._rows = self.length, rows
        branch._used = list(self._used)
        if self.written is not None:
            branch.written = self.written.expand(rows, -1)
        self._lent = self.length
        return branch

    @property
    def bytes(self) -> int:
        """Memory of the slots in use, a shared prefix counted once."""
        return self.own_bytes + sum(map(_bytes, self._prefix))

    @property
    def own_bytes(self) -> int:
        """The same without a shared prefix."""
        layers = range(self.layers if self._rows else 0)
        return sum(_bytes(self.prefix_parts(layer)[1]) for layer in layers)


def _bytes(held: KeysValues) -> int:
    return sum(part.numel() * part.element_size() for part in held)
