"""Tokens of pictures that are left out of some layers, or of all but the first passes.

One wrapper for what is known as withdrawal of visual tokens (VTW: ``layer=k, keep=((0, 0.0),)``),
FastV (``layer=2, keep=((0, 0.5),)``), late-step pruning (``keep=((s, 0.5),)``) and progressive
pruning (``keep=((s, 0.5), (2 * s, 0.25))``). After arXiv 2511.15098: models that began as
autoregressive ones bear withdrawal from later layers, those trained as diffusion models from the
start only what comes after some passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import (
    LayeredModel,
    Wrapped,
    attention_weights,
    layers_of,
    prefilled,
)
from fastloop.accel.decoding.model import Regime
from fastloop.accel.decoding.pruned_cache import PrunedCache

__all__ = ["Pruned"]


class Pruned:
    """A `LanguageModel` whose later layers see fewer tokens of pictures: those most attended to.

    They are ranked in the layer before `layer` (in the middle one for layer 0): after the prompt by
    its last token, after a pass by the masked slots that it read. Those that stay keep their
    positions, those that go are gone for good; text always stays, and so does the last token.
    What it answers is `Exactness.LOSSY`.

    Args:
        model: of a regime that keeps the prompt.
        layer: the first that misses them; from 0 to L, which prunes nothing.
        keep: pairs of a number of passes after the prompt and of the share of all tokens of
            pictures that is kept after as many, rounded up; passes rise and shares fall. Passes 0
            prune the prompt before `layer` reads it, which then has to be 1 or more.

    Raises:
        ValueError: for a ``full`` model, or for numbers as above that are not.
    """

    def __init__(
        self, model: LayeredModel, *, layer: int = 0, keep: Sequence[tuple[int, float]]
    ) -> None:
        self.model, self.spec, self.layers = model, model.spec, model.layers
        if self.spec.regime is Regime.FULL:
            raise ValueError(
                "a full model keeps no prompt of which something could be left out: it reads it "
                "again in every pass"
            )
        if not 0 <= layer <= self.layers:
            raise ValueError(f"layer {layer} is not of 0 to {self.layers}")
        passes, shares = [after for after, _ in keep], [share for _, share in keep]
        if passes != sorted({*passes}) or shares != sorted(shares, reverse=True):
            raise ValueError(f"passes rise and shares fall, got {list(keep)}")
        if any(after < 0 for after in passes) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"passes are 0 or more, shares from 0 to 1, got {list(keep)}")
        if 0 in passes and not layer:
            raise ValueError("layer 0 reads the prompt first: leave pictures out of the prompt")
        self.layer, self.keep = layer, tuple(keep)
        if keep and layer < self.layers:
            told = f"{model.spec.digest}, pictures pruned {self.keep} from layer {layer}"
            self.spec = replace(model.spec, pruned=self.keep, digest=told)
        self.rank = layer - 1 if layer else self.layers // 2

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """See `LanguageModel.prefill`; the host reads how many tokens of pictures each row has."""
        reading = self.model.read(prompts)
        hidden, positions = reading.hidden, reading.positions
        batch, slots = reading.visible.shape
        at, rows = (torch.arange(size, device=hidden.device) for size in (slots, batch))
        last = (reading.visible * at).argmax(1)
        droppable = reading.visual & (at != last[:, None])
        kv = PrunedCache(self.layers, slots + room, self.layer, self.keep, droppable)
        probe, mask = _Probe(self.model, self.rank), reading.mask.expand(batch, -1, -1)
        hidden = layers_of(probe, range(self.layer), hidden, positions, mask, kv.early)
        later = range(self.layer, self.layers)
        if not (kv.keep and kv.keep[0][0] == 0):
            hidden = layers_of(self.model, later, hidden, positions, mask, kv.late)
            return prefilled(self.model, reading, hidden, kv)
        queries, keys = probe.queries[rows, :, last][:, :, None], kv.early.read(self.rank)[0]
        seen = mask[rows, last][:, None]
        kv.scores = attention_weights(queries, keys, seen, self.model.scale).mean((1, 2))
        kv.narrow(slots)
        held = kv.columns
        here = held[..., None].expand(-1, -1, hidden.shape[2])
        mask = kv.seen(mask.gather(1, held[..., None].expand(-1, -1, slots)))
        # What only fills up a row sees itself, since attention to nothing is not a number.
        itself = torch.eye(held.shape[1], dtype=torch.bool, device=mask.device)
        positions = positions.gather(-1, held.expand(*positions.shape[:-1], -1))
        fewer = layers_of(
            self.model, later, hidden.gather(1, here), positions,
            mask | itself & ~kv.real[..., None], kv.late,
        )  # fmt: skip
        return prefilled(self.model, reading, hidden.scatter(1, here, fewer), kv)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`.

        Raises:
            ValueError: for keys and values that its own `prefill` has not made.
        """
        if not isinstance(kv, PrunedCache) or kv.layers != self.layers:
            raise ValueError(
                "layers that miss tokens need keys and values of their own: prefill with the "
                "model that decodes, and choose a driver that keeps them as they are"
            )
        kv.passes += 1
        if kv.scores is not None:
            kv.narrow(kv.length)
        mask = mask.expand(len(ids), -1, -1)
        due = bool(kv.keep) and kv.keep[0][0] == kv.passes
        probe, fewer = _Probe(self.model, self.rank), kv.seen(mask)
        hidden, early = self.model.embed(ids), range(self.layer)
        hidden = layers_of(probe, early, hidden, positions, mask, kv.early)
        hidden = layers_of(probe, range(self.layer, self.layers), hidden, positions, fewer, kv.late)
        if due:
            masked = ids == self.spec.mask_id
            asking = masked | ~masked.any(1, keepdim=True)
            part, seen = (kv.early, mask) if self.layer else (kv.late, fewer)
            keys, _ = part.read(self.rank)
            weights = attention_weights(probe.queries, keys, seen, self.model.scale).mean(1)
            scores = (weights * asking[..., None]).sum(1)
            kv.scores = scores if self.layer else kv.spread(scores)
        return self.model.head(hidden)


class _Probe(Wrapped):
    """A model for one pass that notes the queries of a layer."""

    queries: torch.Tensor

    def __init__(self, model: LayeredModel, layer: int) -> None:
        super().__init__(model)
        self._layer = layer

    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `LayeredModel.project`."""
        projected = super().project(layer, hidden, rotary)
        if layer == self._layer:
            self.queries = projected[0]
        return projected
