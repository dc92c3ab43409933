"""Stock decoders of transformers (Llama, Qwen2, Qwen3) as the decoding engine asks for them.

These classes differ in biases and in norms of queries and keys; what a language diffusion model
changes is what attends to what, and at which slot a logit is read. So one class serves all, with
positions and masks made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import Reading, layers_of, prefilled, without_padding
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.policies.dlm.layers import StockLayers

__all__ = ["Decoder", "prompt_mask", "reading"]


class Decoder(StockLayers):
    """``LlamaForCausalLM``, ``Qwen2ForCausalLM`` or ``Qwen3ForCausalLM`` as a `LayeredModel`.

    Nothing is remembered between calls. A model whose prompts hold pictures overrides `read`.

    Args:
        network: of any floating dtype, on any device.
        spec: what attends to what, and special tokens.

    Raises:
        ValueError: for a network with sliding windows, or ids that its vocabulary has not.
    """

    def __init__(self, network: Any, spec: ModelSpec) -> None:
        kinds = set(getattr(network.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"layers of kinds {sorted(kinds)}; expected full_attention only: set "
                "use_sliding_window to false"
            )
        vocab = network.config.vocab_size
        if spec.vocab != vocab:
            raise ValueError(f"the network has {vocab} tokens, the spec says {spec.vocab}")
        ids = [("mask_id", spec.mask_id), ("null_id", spec.null_id)]
        for name, token in (*ids, *(("stop_id", stop) for stop in spec.stop_ids)):
            if token is not None and not 0 <= token < vocab:
                raise ValueError(f"{name} {token} is not of a vocabulary of {vocab} tokens")
        super().__init__(network.eval(), network.model)
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.network.device
        return device

    @property
    def window(self) -> int:
        """Positions that the network knows, those of the answer included."""
        return int(self.network.config.max_position_embeddings)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """Read one prompt for each of B rows, once; they may be of different lengths.

        A ``full`` model reads nothing yet: its prompts are kept in `Context.prompt`, filled up in
        front with tokens whose positions are negative, which `forward` hides. All others read
        theirs under `prompt_mask`, filled up behind with slots that are hidden. Of a
        ``block_causal`` model all may be empty: they share their first block with the answer.

        Args:
            prompts: B of (P,) token ids, tensors or lists.
            room: slots for tokens that will follow.

        Raises:
            ValueError: for no prompt, one without a token or with one that is not of the
                vocabulary, or one that leaves less than `room` of `window`.
        """
        if self.spec.regime is Regime.FULL:
            return self._unread(self._ids(prompts), room)
        read = self.read(prompts)
        slots = read.hidden.shape[1]
        if not slots:
            return replace(self._unread(list(read.ids), room), prompt=None)
        self._check_room(slots, room)
        kv = KVCache(self.layers, slots + room)
        layers = range(self.layers)
        hidden = layers_of(self, layers, read.hidden, read.positions, read.mask, kv)
        return prefilled(self, read, hidden, kv)

    def read(self, prompts: Sequence[Any]) -> Reading:
        """See `LayeredModel.read`; prompts as in `prefill`.

        Raises:
            ValueError: as `prefill` does, and for a ``full`` model, which keeps no prompt.
        """
        if self.spec.regime is Regime.FULL:
            raise ValueError("a model of regime full keeps nothing of a prompt, so it is not read")
        ids = self._ids(prompts)
        none = [torch.zeros_like(row, dtype=torch.bool) for row in ids]
        return reading(self.spec, ids, [self.embed(row) for row in ids], none)

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """One pass over new tokens; see `LanguageModel.forward`.

        Of a ``full`` model, new tokens at negative positions are hidden from all others: they
        fill up shorter prompts.

        Args:
            ids: (B, Q) int64.
            positions: (B, Q) int64.
            mask: (B or 1, Q, kv.length + Q) bool.
            kv: of these rows, appended in place.

        Returns:
            logits (B, Q, V), at least float32.
        """
        mask = without_padding(self.spec, positions, mask)
        hidden = layers_of(self, range(self.layers), self.embed(ids), positions, mask, kv)
        return self.head(hidden)

    def _unread(self, ids: list[torch.Tensor], room: int) -> Context:
        prompt = pad_sequence(ids, batch_first=True, padding_side="left")
        self._check_room(prompt.shape[1], room)
        dtype = torch.promote_types(self.network.dtype, torch.float32)
        return Context(
            kv=KVCache(self.layers, prompt.shape[1] + room),
            visible=torch.zeros(len(ids), 0, dtype=torch.bool, device=self.device),
            position=torch.tensor([len(row) for row in ids], device=self.device),
            logits=torch.zeros(len(ids), self.spec.vocab, dtype=dtype, device=self.device),
            prompt=prompt,
        )

    def _ids(self, prompts: Sequence[Any]) -> list[torch.Tensor]:
        rows = [torch.as_tensor(prompt).cpu() for prompt in prompts]
        if not rows:
            raise ValueError("there is no prompt to read: give one for each row")
        if self.spec.regime is Regime.BLOCK_CAUSAL and all(row.shape == (0,) for row in rows):
            return [row.to(self.device, torch.int64) for row in rows]
        for row, ids in enumerate(rows):
            if ids.ndim != 1 or not len(ids):
                raise ValueError(f"prompt {row} is of shape {tuple(ids.shape)}, expected (P,)")
            if ids.is_floating_point() or ids.min() < 0 or ids.max() >= self.spec.vocab:
                raise ValueError(
                    f"prompt {row} holds {ids.dtype} from {ids.min()} to {ids.max()}; expected "
                    f"token ids from 0 to {self.spec.vocab - 1}"
                )
        return [ids.to(self.device, torch.int64) for ids in rows]

    def _check_room(self, slots: int, room: int) -> None:
        if slots + room > self.window:
            raise ValueError(
                f"a prompt has {slots} tokens and an answer of {room} is to follow; the model "
                f"reads {self.window} in all"
            )


def reading(
    spec: ModelSpec,
    ids: Sequence[torch.Tensor],
    hidden: Sequence[torch.Tensor],
    visual: Sequence[torch.Tensor],
) -> Reading:
    """Prompts of B rows filled up behind to one length, at positions from 0, under `prompt_mask`.

    Args:
        spec: of the model.
        ids: B of (P,) int64.
        hidden: B of (P, E), tokens and pictures embedded.
        visual: B of (P,) bool, which slots are of pictures.
    """
    device = hidden[0].device
    lengths = torch.tensor([len(row) for row in hidden], device=device)
    filled = pad_sequence(list(hidden), batch_first=True)
    rows, slots = filled.shape[:2]
    visible = torch.arange(slots, device=device) < lengths[:, None]
    return Reading(
        ids=pad_sequence(list(ids), batch_first=True),
        hidden=filled,
        positions=torch.arange(slots, device=device).expand(rows, -1),
        mask=prompt_mask(spec, slots, device) & visible[:, None],
        visible=visible,
        visual=pad_sequence(list(visual), batch_first=True),
        position=lengths,
    )


def prompt_mask(spec: ModelSpec, slots: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Which slots (1, Q, Q) of a prompt a slot of it sees when it is kept.

    Blocks of a ``block_causal`` model are counted from the start of the prompt; a part of a block
    that is left in the end sees itself.
    """
    at = torch.arange(slots, device=device)
    if spec.regime in (Regime.FULL, Regime.PREFIX_LM):
        at = torch.zeros_like(at)
    elif spec.regime is Regime.BLOCK_CAUSAL:
        at = at // spec.block_size
    return (at[:, None] >= at)[None]
