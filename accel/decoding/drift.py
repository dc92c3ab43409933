"""A model that reads again what has changed, and its later layers anew once attention drifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.front import Front, put, taken
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import (
    LayeredModel,
    Wrapped,
    attention,
    attention_weights,
    without_padding,
)

__all__ = ["Drifting"]


@dataclass
class _Layer:
    """What is kept of a layer, for all N tokens.

    Attributes:
        hidden: (B, N, E), what entered it.
        queries: (B, Hq, N, D).
        keys, values: (B, Hk, P + N, D), those of a prompt that stays as it is first.
        tracked: (B, 1) int64, the read token that open slots attended to most.
    """

    hidden: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tracked: torch.Tensor

    @property
    def projected(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.queries, self.keys, self.values


class Drifting(Wrapped):
    """A model for one answer, all of which is handed to it in every pass.

    What the cache holds already, a prompt that stays as it is, every layer sees before that.

    Logits of tokens that a pass did not read are those of the last pass that did.

    Args:
        model: whose layers are read.
        gamma, window, refresh: as of `elastic.Elastic`.

    Attributes:
        host_syncs: times that the host waited for a value of the device.
        layer_tokens: tokens of a row that went through a layer, over all layers and passes.
    """

    def __init__(self, model: LayeredModel, gamma: float, window: int, refresh: int | None) -> None:
        super().__init__(model)
        self.gamma, self.window, self.refresh = gamma, window, refresh
        self.host_syncs = self.layer_tokens = self._passes = 0
        self._kept: list[_Layer] = []
        self._ids = self._logits = torch.empty(0)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`."""
        mask = without_padding(self.spec, positions, mask).expand(len(ids), -1, -1)
        window = Front(ids == self.spec.mask_id, self.window)
        if not self._kept or (self.refresh and self._passes % self.refresh == 0):
            self._logits = self.head(self._whole(self.embed(ids), positions, mask, window, kv))
        else:
            at = self._asked(ids, window)
            hidden = self._part(
                self.embed(ids.gather(1, at)), positions, mask, window, at, kv.length
            )
            self._logits = put(self._logits, at, self.head(hidden))
        # A copy: a driver writes into the tokens that it hands over.
        self._ids, self._passes = ids.clone(), self._passes + 1
        return self._logits

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        parts = [part for layer in self._kept for part in (layer.hidden, *layer.projected)]
        return sum(part.numel() * part.element_size() for part in parts)

    def _whole(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        window: Front,
        kv: KVCache,
    ) -> torch.Tensor:
        """Pass hidden states (B, N, E) of all tokens through all layers and keep everything."""
        self._kept, rotary = [], self.rotary(positions)
        for layer in range(self.layers):
            queries, keys, values = self.project(layer, hidden, rotary)
            if kv.length:
                behind = zip(kv.read(layer), (keys, values), strict=True)
                keys, values = (torch.cat(parts, 2) for parts in behind)
            tracked = window.most_attended(queries, keys, mask, self.scale)
            self._kept.append(_Layer(hidden, queries, keys, values, tracked))
            mixed = attention(queries, keys, values, mask, self.scale)
            hidden = self.finish(layer, hidden, mixed)
            self.layer_tokens += hidden.shape[1]
        return hidden

    def _part(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        window: Front,
        at: torch.Tensor,
        prefix: int,
    ) -> torch.Tensor:
        """Pass hidden states (B, Q, E) of tokens at (B, Q), and of all from where a row drifts.

        The keys that are kept begin with `prefix` of a prompt.
        """
        asked = torch.zeros_like(window.open).scatter(1, at, True)
        rotary, seen = self.rotary(positions.gather(1, at)), taken(mask, at)
        drifted = valid = torch.zeros_like(asked[:, :1])  # rows; of `hidden`, when it is of all
        wide, place = False, at  # whether `hidden` is of all tokens, and which it is of
        for layer, kept in enumerate(self._kept):
            before = self._tracked(kept, mask, kept.tracked)
            if wide:
                hidden = torch.where((valid | asked)[..., None], hidden, kept.hidden)
                # Of rows that have not drifted the others come out as they were kept.
            new = self.project(layer, hidden, rotary)
            places = (place, place + prefix, place + prefix)
            parts = [
                put(b.transpose(1, 2), where, a.transpose(1, 2)).transpose(1, 2)
                for a, b, where in zip(new, kept.projected, places, strict=True)
            ]
            tracked = window.most_attended(parts[0], parts[1], mask, self.scale)
            entered = put(kept.hidden, place, hidden)
            self._kept[layer] = now = _Layer(entered, parts[0], parts[1], parts[2], tracked)
            mixed = attention(new[0], now.keys, now.values, seen, self.scale)
            hidden = self.finish(layer, hidden, mixed)
            self.layer_tokens += hidden.shape[1]
            after = self._tracked(now, mask, kept.tracked)
            similarity = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean((1, 2))
            valid, drifted = drifted, drifted | (similarity < self.gamma)[:, None]
            if not wide and self.gamma > 0 and layer + 1 < self.layers:
                wide = bool(self._host(drifted.any()))
                if wide:
                    hidden = put(self._kept[layer + 1].hidden, at, hidden)
                    rotary, seen = self.rotary(positions), mask
                    place = torch.arange(mask.shape[1], device=at.device).expand(len(mask), -1)
        return taken(hidden, at) if wide else hidden

    def _tracked(self, kept: _Layer, mask: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """Attention weights (B, Hq, 1, N) of a token (B, 1)."""
        queries = taken(kept.queries.transpose(1, 2), slot).transpose(1, 2)
        return attention_weights(queries, kept.keys, taken(mask, slot), self.scale)

    def _asked(self, ids: torch.Tensor, window: Front) -> torch.Tensor:
        """Tokens (B, Q) that a pass reads; a row with fewer names its first one again."""
        asked = window.slots | (ids != self._ids)
        if self.spec.logit_shift:  # of a slot speaks the token before it
            asked |= torch.nn.functional.pad(window.slots[:, 1:], (0, 1))
        asked = asked.scatter(1, torch.cat([kept.tracked for kept in self._kept], 1), True)
        at = (~asked).to(torch.uint8).argsort(dim=1, stable=True)
        at = at[:, : self._host(asked.sum(1).amax())]
        return at.where(asked.gather(1, at), at[:, :1])

    def _host(self, value: torch.Tensor) -> int:
        self.host_syncs += 1
        return int(value.item())
