"""Attention to the finished context, kept for a few passes over a block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel, Wrapped, attention_and_mass
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["FlashBlock"]


@dataclass(frozen=True)
class FlashBlock(SectionDiffusion):
    """`SectionDiffusion` that looks at the context anew only when a block has changed enough.

    While a block is denoised its context stands still, and what its slots get from there changes
    little (FlashBlock, arXiv 2602.05305). So that is kept, layer by layer, with the logarithm of
    its softmax's denominator, and merged with attention to the block's own slots, which is always
    new. A row looks anew when `tau` of its tokens have changed since it last did, and in every
    pass over a block of it that is full: what is kept for good is exact. It pays where contexts
    are long; the host reads one number more a pass.

    Stale are the slots that were written since. Where logits speak of their own slot nobody asks
    for theirs; where they speak of the next one (`ModelSpec.logit_shift`) the slot behind is told
    by them, and answers suffer more.

    Attributes:
        tau: 1 looks anew in every pass.
    """

    tau: int = 2

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT})
    refusal: ClassVar[str] = (
        "attention to the context may be kept only while the context stands still"
    )

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "flash_block"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: the model has to be passed layer by layer, too."""
        super().check(model, canvas)
        _FlashBlock(cast(LayeredModel, model), self.tau)

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`."""
        reader = _FlashBlock(cast(LayeredModel, model), self.tau)
        decoded = super().decode(reader, context, canvas, continued=continued, debug=debug)
        return replace(
            decoded,
            host_syncs=decoded.host_syncs + reader.host_syncs,
            kv_bytes=decoded.kv_bytes + reader.bytes,
        )


class _FlashBlock(Wrapped):
    """A model for one answer that remembers what the last pass got from the context.

    Attributes:
        looks: passes in which some row looked anew.
        host_syncs: passes that had to ask the device whether some row has to.
    """

    def __init__(self, model: LayeredModel, tau: int) -> None:
        super().__init__(model)
        self.tau, self.looks, self.host_syncs = tau, 0, 0
        self._length = -1  # of the context that was looked at
        self._ids = torch.empty(0)  # (B, Q) with which each row last did
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`."""
        length, stale = kv.length, self._stale(ids, kv.length)
        if stale is not None:
            self.looks += 1
        outside, inside = torch.split(mask, [length, ids.shape[1]], 2)
        hidden, rotary = self.embed(ids), self.rotary(positions)
        for layer in range(self.layers):
            queries, keys, values = self.project(layer, hidden, rotary)
            kv.write(layer, keys, values)
            own = attention_and_mass(queries, keys, values, inside, self.scale)
            if stale is not None:
                keys, values = (part[:, :, :length] for part in kv.read(layer))
                seen = attention_and_mass(queries, keys, values, outside, self.scale)
                self._hold(layer, seen, stale)
            mixed = _merged(own, self._held[layer]).to(queries.dtype)
            hidden = self.finish(layer, hidden, mixed)
        return self.head(hidden)

    @property
    def bytes(self) -> int:
        """Memory of what is remembered."""
        parts = [part for held in self._held for part in held]
        return sum(part.numel() * part.element_size() for part in parts)

    def _stale(self, ids: torch.Tensor, length: int) -> torch.Tensor | None:
        """Which rows (B,) look anew, None where no row does."""
        if length != self._length or ids.shape != self._ids.shape:
            # A copy: a driver writes into the tokens that it hands over.
            self._length, self._ids, self._held = length, ids.clone(), []
            return torch.ones_like(ids[:, 0], dtype=torch.bool)
        full = (ids != self.spec.mask_id).all(1)
        stale = full | ((ids != self._ids).sum(1) >= self.tau)
        self._ids = torch.where(stale[:, None], ids, self._ids)
        self.host_syncs += 1
        return stale if stale.any().item() else None

    def _hold(
        self, layer: int, seen: tuple[torch.Tensor, torch.Tensor], stale: torch.Tensor
    ) -> None:
        if layer == len(self._held):
            self._held.append(seen)
            return
        mixed, mass = self._held[layer]
        rows = stale[:, None, None]
        self._held[layer] = (
            torch.where(rows[..., None], seen[0], mixed),
            torch.where(rows, seen[1], mass),
        )


def _merged(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Attention to both of two parts, each (B, H, Q, D) with its logarithm of mass (B, H, Q)."""
    share = (one[1] - other[1]).sigmoid()[..., None]  # of the mass that is in the first
    return share * one[0] + (1 - share) * other[0]
