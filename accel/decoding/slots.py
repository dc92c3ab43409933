"""Keys and values in places of their own: read anew where asked, the others stay as they were."""

from __future__ import annotations

import torch

from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import ModelSpec

__all__ = ["SlotStore", "check_slots"]


class SlotStore(KVCache):
    """A `KVCache` for models that see all slots at once: a pass may write any of N slots over.

    `expect` says which slots the next pass is over. Its keys and values, which come after rotary
    embedding, go there, and attention sees those of all slots in their order. What was read of a
    prompt that stays as it is goes before slot 0.

    Attributes:
        prefix: P, keys of that prompt.
        written: None, or (B, N + 1) int64 for whoever checks his own work: which token was read
            into a slot, -1 for none.
    """

    def __init__(self, prompt: KVCache, slots: int) -> None:
        # One more, which nobody sees: there goes what only fills up a row.
        super().__init__(prompt.layers, prompt.length + slots + 1)
        self.prefix, self._prompt = prompt.length, prompt

    def expect(self, slots: torch.Tensor, extent: int) -> None:
        """What the next pass is over.

        Args:
            slots: (B, Q) int64, each below `extent` and once a row, or N for what fills it up.
            extent: how many slots the pass sees; those behind are left out of attention. At
                least Q.
        """
        self._at = (self.prefix + slots)[:, None, :, None]
        self._used = [self.prefix + extent - slots.shape[1]] * self.layers

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put (B, H, Q, D) of one layer into their slots; layers come in their order.

        Or of a multiple of B rows, where a model is asked in several ways (`guidance.Guided`).
        """
        if layer == len(self._own):
            self._own.append((self._buffer(keys, layer, 0), self._buffer(values, layer, 1)))
            self._rows = len(keys)
        at = self._at.repeat(len(keys) // len(self._at), 1, 1, 1).expand_as(keys)
        for buffer, new in zip(self._own[layer], (keys, values), strict=True):
            buffer.scatter_(2, at, new)
        self._used[layer] += keys.shape[2]

    def check(self, slots: torch.Tensor, seen: torch.Tensor, tokens: torch.Tensor) -> None:
        """That a pass over `slots` sees no key but of the token that stands in its slot.

        Args:
            slots: as `expect` was told.
            seen: (B, N) bool.
            tokens: (B, N + 1) int64, what stands in the slots.

        Raises:
            RuntimeError: for the first row in which it would.
        """
        if self.written is None:
            self.written = torch.full_like(tokens, -1)
        self.written.scatter_(1, slots, tokens.gather(1, slots))
        stale = seen & (self.written != tokens)[:, :-1]
        for row in stale.any(1).nonzero().flatten().tolist():
            raise RuntimeError(
                f"row {row}: slots {stale[row].nonzero().flatten().tolist()} are seen although "
                "their keys were read from other tokens than stand there"
            )

    @property
    def bytes(self) -> int:
        """Memory of all slots, whether seen or not."""
        return sum(part.numel() * part.element_size() for pair in self._own for part in pair)

    def _buffer(self, like: torch.Tensor, layer: int, part: int) -> torch.Tensor:
        rows, heads, _, width = like.shape
        # Zeros, not garbage: a slot that nobody has read is hidden, but 0 * NaN is NaN.
        buffer = like.new_zeros(rows, heads, self.slots, width)
        if self.prefix:
            buffer[:, :, : self.prefix] = self._prompt.read(layer)[part]
        return buffer


def check_slots(name: str, spec: ModelSpec) -> None:
    """Refuse a model some of whose layers hold fewer slots than others.

    Raises:
        ValueError: naming the driver that would keep keys in slots.
    """
    if spec.pruned:
        raise ValueError(
            f"{name} keeps keys of all layers in the same slots, and later layers of a model that "
            "prunes hold fewer; decode with a driver that keeps them as they are (SectionDiffusion)"
        )
