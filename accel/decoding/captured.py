"""Passes over new tokens as CUDA graphs: a pass of a few milliseconds has hundreds of launches.

Of a pass everything stays the same but numbers in tensors: tokens are filled up to the next of a
few widths (`BUCKETS`), keys and values lie at fixed addresses (`FixedKV`), and what sees what are
two masks, one of what was kept and one of what is new. Draft, verification and all other phases
differ in masks only, so that one graph of a width serves all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.fixed import Buffers, FixedKV, lent
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel, Wrapped
from fastloop.accel.decoding.model import Regime
from fastloop.accel.graph import CudaRecorder, Function, Graph, Recorder, Tensors
from fastloop.accel.kernels.choose import form_of

__all__ = ["BUCKETS", "Captured"]

BUCKETS = (1, 4, 8, 16, 32, 64, 128)


class Captured(Wrapped):
    """A model whose passes over one row, or over branches of one, are recorded and replayed.

    It answers as the model does. Several prompts at once, more new tokens than the widest bucket
    and whatever a driver does layer by layer go through the model itself. In a pass all new tokens
    of a row see the same of what was kept before it, as they do in all drivers.

    New shapes are recorded where somebody is prepared to wait, `fastloop.accel.graph.recording`.

    Args:
        model: of a regime that keeps a prompt. What its parts do may not depend on values: its
            layers are recorded.
        recorder: how a pass is recorded; None for CUDA graphs on a GPU and none elsewhere.

    Attributes:
        replayed: passes that were replayed.
        unrecorded: why others were not, to how many it happened.

    Raises:
        ValueError: for a model that keeps nothing, or is not passed layer by layer.
    """

    def __init__(self, model: LayeredModel, recorder: Recorder | None = None) -> None:
        super().__init__(model)
        if self.spec.regime is Regime.FULL:
            raise ValueError("a model of regime full keeps nothing: no two of its passes are alike")
        self.recorder = recorder
        self.replayed = 0
        self.unrecorded: Counter[str] = Counter()
        self._rows: list[Buffers] = []

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """See `LanguageModel.prefill`: as the model itself does."""
        context = self.model.prefill(prompts, room=room)
        if len(prompts) != 1:
            return context
        # What fills up the last tokens to a bucket takes less than half of the widest.
        slots = context.kv.length + room + BUCKETS[-1] // 2
        kv = FixedKV(lent(self._rows, context.kv.read(0)[0], self.layers, slots))
        kv.fill(context.kv)
        return replace(context, kv=kv)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel.forward`.

        Raises:
            ValueError: where it costs nothing to find out, on a CPU: new tokens that see different
                things of what was kept.
        """
        new = ids.shape[1]
        wide = next((bucket for bucket in BUCKETS if bucket >= new), None)
        buffers = kv.buffers if isinstance(kv, FixedKV) else None
        if buffers is None or wide is None or kv.length - kv.shared + wide > buffers.slots:
            why = "their keys lie elsewhere" if buffers is None else f"{new} tokens at once"
            self.unrecorded[f"{why}, of {len(ids)} rows"] += 1
            return self.model.forward(ids, positions=positions, mask=mask, kv=kv)
        assert isinstance(kv, FixedKV)
        before = kv.shared if buffers.prefix else kv.length
        mask, kept = mask.expand(len(ids), -1, -1), (buffers.prefix or buffers).slots
        if mask.device.type == "cpu" and not bool((mask == mask[:, :1])[:, :, :before].all()):
            raise ValueError("new tokens of a row see different things of what was kept before")
        behind = (buffers.slots if buffers.prefix else wide) - (mask.shape[2] - before)
        logits = self._pass(
            buffers,
            pad(ids, (0, wide - new)),
            pad(positions.expand(len(ids), -1), (0, wide - new)),
            pad(mask[:, 0, :before], (0, kept - before)),
            pad(mask[:, :, before:], (0, behind, 0, wide - new)),
            torch.full((1,), kv.own, device=ids.device),
        )
        kv.advance(new)
        return logits[:, :new]

    def told(self) -> tuple[int, Counter[str]]:
        """`replayed` and `unrecorded` since this was asked last."""
        told = self.replayed, self.unrecorded
        self.replayed, self.unrecorded = 0, Counter()
        return told

    def _pass(self, buffers: Buffers, *inputs: torch.Tensor) -> torch.Tensor:
        if buffers.recorded is None:
            # Not the buffers themselves, which would hold themselves then.
            prefix = buffers.prefix.tensors if buffers.prefix else None
            function = partial(_pass, self.model, buffers.tensors, prefix)
            recorder = self.recorder
            if recorder is None and buffers.keys.is_cuda:
                recorder = CudaRecorder(buffers.keys.device)
            buffers.recorded = (
                Graph(function, recorder) if recorder else partial(_as_it_is, function)
            )
        said, why = buffers.recorded(*inputs)
        if why:
            self.unrecorded[why] += 1
        else:
            self.replayed += 1
        logits: torch.Tensor = said[0]
        return logits


def _as_it_is(function: Function, *inputs: torch.Tensor) -> tuple[Tensors, str]:
    return function(*inputs), "CUDA graphs are of CUDA devices"


def _pass(
    model: LayeredModel,
    own: tuple[torch.Tensor, torch.Tensor],
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    ids: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor,
    mask: torch.Tensor,
    start: torch.Tensor,
) -> tuple[torch.Tensor]:
    """Logits (B, Q, V) of new tokens, whose keys and values are written in place.

    Args:
        model: that is passed.
        own: keys and values (L, B, H, S, D) of these rows.
        prefix: those (L, 1, H, P, D) of the row that they branch from; None for a row that has all
            in `own`.
        ids, positions: (B, Q) int64.
        visible: (B, P) bool, or (B, S) of a row: what was kept that a row sees.
        mask: (B, Q, S) bool, what of `own` a token sees; of a row (B, Q, Q), the new ones.
        start: (1,) int64, the first slot of `own` that is written.
    """
    slots = start + torch.arange(ids.shape[1], device=ids.device)
    hidden, rotary = model.embed(ids), model.rotary(positions)
    attend = form_of("shared_prefix", own[0]).shared_prefix_attention
    for layer in range(model.layers):
        queries, *new = model.project(layer, hidden, rotary)
        mine = [
            part[layer].index_copy_(2, slots, more) for part, more in zip(own, new, strict=True)
        ]
        before, behind = (mine, new) if prefix is None else ([part[layer] for part in prefix], mine)
        mixed = attend(queries, *before, *behind, mask, model.scale, visible)
        hidden = model.finish(layer, hidden, mixed)
    return (model.head(hidden),)
