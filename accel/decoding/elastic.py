"""Keys and values that are kept until attention drifts, and then from that layer on read anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.commits import Commit
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import (
    LayeredModel,
    Wrapped,
    attention,
    attention_weights,
    without_padding,
)
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["Elastic"]


@dataclass(frozen=True)
class Elastic(SectionDiffusion):
    """`SectionDiffusion` of a ``full`` model that reads little of it in a pass (Elastic-Cache).

    A pass is over the first open slots, those written since the last one, and for each layer the
    read token that open slots attended to most. Where the attention of that token has turned
    (cosine below `gamma`), every layer from the next on is computed for all tokens, whose inputs to
    that layer were kept; layers before go on with old keys and values (arXiv 2510.14973). Only the
    first open slots are written. Rows decide for themselves; the host reads one number a layer.

    Attributes:
        gamma: 0 never reads anew, as no cosine of weights is less; above 1 only the first layer
            keeps anything, which still is not the same as a pass with nothing kept.
        window: how many open slots are read and may be written.
        refresh: every so many passes all of it is read anew; 1 keeps nothing, None does so in the
            first pass only.

    Raises:
        ValueError: for a window or a refresh below 1, a commit policy that edits, or an answer
            that is cut or seeded.
    """

    gamma: float = 0.9
    window: int = 16
    refresh: int | None = None

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.FULL})
    refusal: ClassVar[str] = "its keys stay right, so none need be watched for drift"

    def __post_init__(self) -> None:
        if self.window < 1 or (self.refresh is not None and self.refresh < 1):
            raise ValueError(
                f"window and refresh are 1 or more, got {self.window} and {self.refresh}"
            )
        if self.commit.edits:
            raise ValueError(
                f"{type(self.commit).__name__} writes over slots that {self.name} no longer reads"
            )
        if self.seed or self.truncate:
            raise ValueError(
                f"{self.name} keeps hidden states of all slots, and no logits before them: leave "
                "seed and truncate False"
            )

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "elastic_cache"

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`; the context stays as it was.

        Raises:
            ValueError: also when the model is not passed layer by layer.
        """
        reader = _Reader(cast(LayeredModel, model), self)
        inner = replace(self, commit=_Leading(self.commit, self.window))
        nowhere = replace(context, kv=_Nowhere(reader.layers, 1))
        decoded = SectionDiffusion.decode(
            inner, reader, nowhere, canvas, continued=continued, debug=debug
        )
        syncs = decoded.host_syncs + reader.host_syncs
        return replace(decoded, host_syncs=syncs, kv_bytes=reader.bytes)


@dataclass(frozen=True)
class _Leading(Commit):
    """Another policy, over the first `count` open slots."""

    policy: Commit
    count: int

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        return self.policy(logits, tokens, self._leading(unwritten))

    def passes(self, values: int) -> int | None:
        return self.policy.passes(values) if values <= self.count else None

    def begin(self, values: int) -> Commit:
        return replace(self, policy=self.policy.begin(values))

    def heard(self, logits: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
        return self.policy.heard(logits, self._leading(unwritten))

    def check(self, spec: ModelSpec, canvas: Canvas) -> None:
        self.policy.check(spec, canvas)

    def _leading(self, unwritten: torch.Tensor) -> torch.Tensor:
        return unwritten & (unwritten.cumsum(1) <= self.count)


class _Nowhere(KVCache):
    """For a driver that reads all of an answer again: a reader of its own keeps what it likes."""

    def crop(self, slots: int) -> None:
        if self.written is not None:
            self.written = self.written[:, :0]


@dataclass
class _Layer:
    """What is kept of a layer, for all N tokens.

    Attributes:
        hidden: (B, N, E), what entered it.
        queries: (B, Hq, N, D).
        keys, values: (B, Hk, N, D).
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


class _Reader(Wrapped):
    """A model for one answer, all of which is handed to it in every pass.

    Logits of tokens that a pass did not read are those of the last pass that did.

    Attributes:
        host_syncs: times that the host waited for a value of the device.
        layer_tokens: tokens of a row that went through a layer, over all layers and passes.
    """

    def __init__(self, model: LayeredModel, settings: Elastic) -> None:
        super().__init__(model)
        self.gamma, self.window, self.refresh = settings.gamma, settings.window, settings.refresh
        self.host_syncs = self.layer_tokens = self._passes = 0
        self._kept: list[_Layer] = []
        self._ids = self._logits = torch.empty(0)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`."""
        mask = without_padding(self.spec, positions, mask).expand(len(ids), -1, -1)
        window = _Window(ids == self.spec.mask_id, self.window)
        if not self._kept or (self.refresh and self._passes % self.refresh == 0):
            self._logits = self.head(self._whole(self.embed(ids), positions, mask, window))
        else:
            at = self._asked(ids, window)
            hidden = self._part(self.embed(ids.gather(1, at)), positions, mask, window, at)
            self._logits = _put(self._logits, at, self.head(hidden))
        # A copy: a driver writes into the tokens that it hands over.
        self._ids, self._passes = ids.clone(), self._passes + 1
        return self._logits

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        parts = [part for layer in self._kept for part in (layer.hidden, *layer.projected)]
        return sum(part.numel() * part.element_size() for part in parts)

    def _whole(
        self, hidden: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, window: _Window
    ) -> torch.Tensor:
        """Pass hidden states (B, N, E) of all tokens through all layers and keep everything."""
        self._kept, rotary = [], self.rotary(positions)
        for layer in range(self.layers):
            queries, keys, values = self.project(layer, hidden, rotary)
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
        window: _Window,
        at: torch.Tensor,
    ) -> torch.Tensor:
        """Pass hidden states (B, Q, E) of tokens at (B, Q), and of all from where a row drifts."""
        asked = torch.zeros_like(window.open).scatter(1, at, True)
        rotary, seen = self.rotary(positions.gather(1, at)), _taken(mask, at)
        drifted = valid = torch.zeros_like(asked[:, :1])  # rows; of `hidden`, when it is of all
        wide = False  # whether `hidden` is of all tokens
        for layer, kept in enumerate(self._kept):
            before = self._tracked(kept, mask, kept.tracked)
            if wide:
                hidden = torch.where((valid | asked)[..., None], hidden, kept.hidden)
                # Of rows that have not drifted the others come out as they were kept.
                entered, new = hidden, self.project(layer, hidden, rotary)
                parts = list(new)
            else:
                entered, new = _put(kept.hidden, at, hidden), self.project(layer, hidden, rotary)
                parts = [
                    _put(b.transpose(1, 2), at, a.transpose(1, 2)).transpose(1, 2)
                    for a, b in zip(new, kept.projected, strict=True)
                ]
            tracked = window.most_attended(parts[0], parts[1], mask, self.scale)
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
                    hidden = _put(self._kept[layer + 1].hidden, at, hidden)
                    rotary, seen = self.rotary(positions), mask
        return _taken(hidden, at) if wide else hidden

    def _tracked(self, kept: _Layer, mask: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """Attention weights (B, Hq, 1, N) of a token (B, 1)."""
        queries = _taken(kept.queries.transpose(1, 2), slot).transpose(1, 2)
        return attention_weights(queries, kept.keys, _taken(mask, slot), self.scale)

    def _asked(self, ids: torch.Tensor, window: _Window) -> torch.Tensor:
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


class _Window:
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
        """The token (B, 1) that is not open and gets most of the attention from these slots."""
        asking = _taken(queries.transpose(1, 2), self._at).transpose(1, 2)
        weights = attention_weights(asking, keys, _taken(mask, self._at), scale).mean(1)
        received = (weights * self._real[..., None]).sum(1)
        return received.masked_fill(self.open, -1.0).argmax(1, keepdim=True)


def _taken(of: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows (B, Q, ...) of (B, N, ...) at (B, Q)."""
    return of[torch.arange(len(of), device=of.device)[:, None], at]


def _put(into: torch.Tensor, at: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(B, N, ...) with rows (B, Q, ...) at (B, Q), those that are named twice being equal."""
    into = into.clone()
    into[torch.arange(len(into), device=into.device)[:, None], at] = new
    return into
