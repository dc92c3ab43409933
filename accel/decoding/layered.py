"""Models that are passed through layer by layer, for whoever leaves out part of a pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.packing import Packing
from fastloop.accel.kernels.choose import form_of

__all__ = [
    "LayeredModel",
    "Reading",
    "Wrapped",
    "attention",
    "attention_and_mass",
    "attention_weights",
    "layers_of",
    "prefilled",
    "without_padding",
]


@dataclass(frozen=True)
class Reading:
    """Prompts of B rows as they enter the first layer.

    Attributes:
        ids: (B, P) int64.
        hidden: (B, P, E), tokens and pictures embedded.
        positions: (B, P) int64, or (3, B, P) where pictures have three coordinates; what
            `LayeredModel.rotary` takes.
        mask: (B or 1, P, P) bool, True where a slot may look.
        visible: (B, P) bool, which slots hold tokens of the row; the others fill it up behind them.
        visual: (B, P) bool, which of those are of pictures.
        position: (B,) int64, that of the next token.
    """

    ids: torch.Tensor
    hidden: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    visible: torch.Tensor
    visual: torch.Tensor
    position: torch.Tensor


class LayeredModel(LanguageModel, Protocol):
    """A language model whose layers can be called one by one, with attention left to the caller.

    A pass is ``embed``, then for each layer ``project``, attention, ``finish``, then ``head``; done
    so with `attention` over all keys it gives what `LanguageModel.forward` gives.

    Attributes:
        layers: L.
        scale: attention weights are softmax(scale * queries @ keys).
    """

    layers: int
    scale: float

    def read(self, prompts: Sequence[Any]) -> Reading:
        """What `prefill` would pass through the layers; for regimes that keep the prompt."""
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, Q, E) of tokens (B, Q), as they enter the first layer."""
        ...

    def rotary(self, positions: torch.Tensor) -> Any:
        """What `project` needs to know of positions (B, Q) or (3, B, Q); made once for a pass."""
        ...

    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, Hq, Q, D), keys and values (B, Hk, Q, D) of hidden states (B, Q, E).

        Queries and keys after normalization and rotary embedding; Hk divides Hq.
        """
        ...

    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, Q, E) after a layer.

        Args:
            layer: counted from 0.
            hidden: (B, Q, E), as they entered it.
            mixed: (B, Hq, Q, D), what attention gave.
        """
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, Q, V), float32 or wider, of what left the last layer (final norm included)."""
        ...


class Wrapped:
    """A `LayeredModel` whose parts are those of another one, until a subclass changes some.

    Args:
        model: the other one.

    Raises:
        ValueError: for a model that is not passed layer by layer.
    """

    def __init__(self, model: LayeredModel) -> None:
        if not hasattr(model, "project"):
            raise ValueError(
                f"{type(model).__name__} is not passed through layer by layer, which "
                f"{type(self).__name__.strip('_')} needs; expected a LayeredModel (a model that "
                "prunes is the outermost of all wrappers)"
            )
        self.model = model
        self.spec, self.layers, self.scale = model.spec, model.layers, model.scale

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """See `LanguageModel.prefill`."""
        if self.spec.regime is Regime.FULL:  # nothing is read yet
            context = self.model.prefill(prompts, room=room)
            return replace(context, kv=KVCache(self.layers, context.kv.slots))
        reading = self.read(prompts)
        kv = KVCache(self.layers, reading.hidden.shape[1] + room)
        layers = range(self.layers)
        hidden = layers_of(self, layers, reading.hidden, reading.positions, reading.mask, kv)
        return prefilled(self, reading, hidden, kv)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`.

        Raises:
            ValueError: for keys and values that another number of layers made.
        """
        if kv.layers != self.layers:
            raise ValueError(
                f"a pass through {self.layers} layers over what {kv.layers} have read: prefill "
                "with the model that decodes"
            )
        mask = without_padding(self.spec, positions, mask)
        return self.head(layers_of(self, range(self.layers), self.embed(ids), positions, mask, kv))

    def read(self, prompts: Sequence[Any]) -> Reading:
        """See `LayeredModel.read`."""
        return self.model.read(prompts)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.embed`."""
        return self.model.embed(ids)

    def rotary(self, positions: torch.Tensor) -> Any:
        """See `LayeredModel.rotary`."""
        return self.model.rotary(positions)

    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `LayeredModel.project`."""
        return self.model.project(layer, hidden, rotary)

    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.finish`."""
        return self.model.finish(layer, hidden, mixed)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.head`."""
        return self.model.head(hidden)


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """What queries (B, Hq, Q, D) get from keys and values (B, Hk, S, D): (B, Hq, Q, D).

    Args:
        queries: after rotary embedding, as keys are.
        keys: of heads that are each shared by Hq / Hk query heads.
        values: the same.
        mask: (B or 1, Q, S) bool, in every row True somewhere.
        scale: of the products.
    """
    return torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask[:, None], scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )  # fmt: skip


def attention_and_mass(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention`, and the logarithm of what its weights were divided by, so that parts merge.

    Computed in float32 or wider; queries that see nothing get zeros and -inf.

    Returns:
        (B, Hq, Q, D) and (B, Hq, Q).
    """
    scores = _scores(queries, keys, mask, scale)
    mass = scores.logsumexp(-1)
    weights = (scores - mass.clamp(min=torch.finfo(mass.dtype).min)[..., None]).exp()
    mixed = weights @ values.to(weights.dtype)[:, :, None]
    return mixed.flatten(1, 2), mass.flatten(1, 2)


def attention_weights(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The weights (B, Hq, Q, S) of `attention`, float32 or wider."""
    return _scores(queries, keys, mask, scale).softmax(-1).flatten(1, 2)


def _scores(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """(B, Hk, Hq / Hk, Q, S), -inf where the mask is False."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    rows, _, asked, width = queries.shape
    grouped = queries.to(wide).reshape(rows, keys.shape[1], -1, asked, width)
    scores: torch.Tensor = scale * grouped @ keys.to(wide)[:, :, None].transpose(-1, -2)
    return scores.masked_fill(~mask[:, None, None], -math.inf)


def layers_of(
    model: LayeredModel,
    layers: Sequence[int],
    hidden: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    kv: KVCache,
) -> torch.Tensor:
    """Pass hidden states (B, Q, E) through some layers in their order.

    Args:
        model: whose layers.
        layers: which; the i-th of them writes layer i of `kv`.
        hidden: (B, Q, E).
        positions: (B, Q) or (3, B, Q) int64, see `LanguageModel.forward`.
        mask: (B or 1, Q, kv.length + Q) bool.
        kv: appended in place.
    """
    packing = Packing.of(positions)
    if packing:
        hidden, positions = packing.pack(hidden), packing.pack_last(positions)
    rotary = model.rotary(positions)
    common = _common(mask, kv)
    for slot, layer in enumerate(layers):
        queries, keys, values = model.project(layer, hidden, rotary)
        if packing:
            queries, keys, values = map(packing.spread_heads, (queries, keys, values))
        if common:
            kv.write(slot, keys, values)
            mixed = _branched(queries, kv, slot, mask[:, :, common:], model.scale)
        else:
            keys, values = kv.append(slot, keys, values)
            mixed = attention(queries, keys, values, mask, model.scale)
        hidden = model.finish(layer, hidden, packing.pack_heads(mixed) if packing else mixed)
    return packing.spread(hidden) if packing else hidden


def _common(mask: torch.Tensor, kv: KVCache) -> int:
    """Slots of a prefix that all rows share and that all of their queries see, on a CPU, where it
    costs nothing to look; else 0."""
    look = kv.shared and mask.device.type == "cpu"
    return kv.shared if look and mask[:, :, : kv.shared].all() else 0


def _branched(
    queries: torch.Tensor, kv: KVCache, layer: int, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """`attention` of branches (B, Hq, Q, D), which reads once what they share.

    `mask` (B or 1, Q, S) is that of their own slots.
    """
    prefix, own = kv.prefix_parts(layer)
    attend = form_of("shared_prefix", queries).shared_prefix_attention
    mixed: torch.Tensor = attend(queries, *prefix, *own, mask, scale)
    return mixed


def prefilled(model: LayeredModel, reading: Reading, hidden: torch.Tensor, kv: KVCache) -> Context:
    """The context of prompts whose hidden states (B, P, E) have left the last layer."""
    slots = torch.arange(hidden.shape[1], device=hidden.device)
    last = (reading.visible * slots).argmax(1)
    rows = torch.arange(len(hidden), device=hidden.device)
    logits = model.head(hidden[rows, last][:, None])[:, 0]
    return Context(kv, reading.visible, reading.position, logits)


def without_padding(spec: ModelSpec, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A mask (B or 1, Q, S + Q) with what fills up shorter prompts of a ``full`` model hidden.

    Such tokens are read in every pass, at negative positions (B, Q); other regimes hide theirs in
    `Context.visible`.
    """
    if spec.regime is not Regime.FULL:
        return mask
    kept = torch.ones_like(positions[:, :1], dtype=torch.bool)
    kept = kept.expand(-1, mask.shape[2] - positions.shape[1])
    return mask & torch.cat([kept, positions >= 0], 1)[:, None]
