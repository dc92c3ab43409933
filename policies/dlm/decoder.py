"""Stock decoders of transformers (Llama, Qwen2, Qwen3) as the decoding engine asks for them.

These classes differ in biases and in norms of queries and keys; what a language diffusion model
changes is what attends to what, and at which slot a logit is read. So one class serves all: it
calls the modules of a network one by one, with positions and masks made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import ModelSpec, Regime

__all__ = ["Decoder", "prompt_mask"]

Rotation = tuple[torch.Tensor, torch.Tensor]


class Decoder:
    """``LlamaForCausalLM``, ``Qwen2ForCausalLM`` or ``Qwen3ForCausalLM`` as a `LanguageModel`.

    Nothing is remembered between calls.

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
        for name in ("mask_id", "stop_id", "null_id"):
            token = getattr(spec, name)
            if token is not None and not 0 <= token < vocab:
                raise ValueError(f"{name} {token} is not of a vocabulary of {vocab} tokens")
        self.network = network.eval()
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.network.device
        return device

    @property
    def layers(self) -> int:
        """L."""
        return len(self.network.model.layers)

    @property
    def window(self) -> int:
        """Positions that the network knows, those of the answer included."""
        return int(self.network.config.max_position_embeddings)

    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """Read one prompt for each of B rows, once; they may be of different lengths.

        A ``full`` model reads nothing yet: its prompts are kept in `Context.prompt`, filled up in
        front with tokens whose positions are negative, which `forward` hides. All others read
        theirs under `prompt_mask`, filled up behind with slots that are hidden.

        Args:
            prompts: B of (P,) token ids, tensors or lists.
            room: slots for tokens that will follow.

        Raises:
            ValueError: for no prompt, one without a token or with one that is not of the
                vocabulary, or one that leaves less than `room` of `window`.
        """
        rows = [torch.as_tensor(prompt, dtype=torch.int64).cpu() for prompt in prompts]
        self._check(rows, room)
        if self.spec.regime is not Regime.FULL:
            return self.read([self.embed(row.to(self.device)) for row in rows], room=room)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        prompt = pad_sequence(rows, batch_first=True, padding_side="left").to(self.device)
        dtype = torch.promote_types(self.network.dtype, torch.float32)
        return Context(
            kv=KVCache(self.layers, prompt.shape[1] + room),
            visible=torch.zeros(len(rows), 0, dtype=torch.bool, device=self.device),
            position=lengths,
            logits=torch.zeros(len(rows), self.spec.vocab, dtype=dtype, device=self.device),
            prompt=prompt,
        )

    @torch.no_grad()
    def read(self, prompts: Sequence[torch.Tensor], *, room: int) -> Context:
        """`prefill` of embeddings, such as of text with pictures in it.

        Args:
            prompts: B of (P, E), P at least 1.
            room: slots for tokens that will follow.

        Raises:
            ValueError: for a ``full`` model, which keeps nothing of a prompt.
        """
        if self.spec.regime is Regime.FULL:
            raise ValueError("a model of regime full keeps nothing of a prompt: give token ids")
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        hidden = pad_sequence(list(prompts), batch_first=True)
        slots = hidden.shape[1]
        visible = torch.arange(slots, device=self.device) < lengths[:, None]
        mask = prompt_mask(self.spec, slots, self.device) & visible[:, None]
        positions = torch.arange(slots, device=self.device).expand(len(prompts), -1)
        kv = KVCache(self.layers, slots + room)
        hidden = self._pass(hidden, positions, mask, kv)
        last = hidden[torch.arange(len(prompts), device=self.device), lengths - 1]
        return Context(kv=kv, visible=visible, position=lengths, logits=self.head(last))

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
        if self.spec.regime is Regime.FULL:
            kept, new = mask.split([mask.shape[2] - ids.shape[1], ids.shape[1]], 2)
            new = new & (positions >= 0)[:, None]
            mask = torch.cat([kept.expand(len(new), -1, -1), new], 2)
        return self.head(self._pass(self.embed(ids), positions, mask, kv))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., E) of ids (...)."""
        embeddings: torch.Tensor = self.network.model.embed_tokens(ids)
        return embeddings

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V), at least float32, of what the last layer gave (..., E)."""
        logits: torch.Tensor = self.network.lm_head(self.network.model.norm(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _pass(
        self, hidden: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        rotation = self.network.model.rotary_emb(hidden, positions)
        for index, layer in enumerate(self.network.model.layers):
            queries, keys, values = _project(layer, hidden, rotation)
            keys, values = kv.append(index, keys, values)
            hidden = _finish(layer, hidden, _attend(layer, queries, keys, values, mask))
        return hidden

    def _check(self, prompts: Sequence[torch.Tensor], room: int) -> None:
        if not prompts:
            raise ValueError("there is no prompt to read: give one for each row")
        for row, ids in enumerate(prompts):
            if ids.ndim != 1 or not 0 < len(ids) <= self.window - room:
                raise ValueError(
                    f"prompt {row} is of shape {tuple(ids.shape)} and an answer of {room} is to "
                    f"follow; the model reads 1 to {self.window} tokens in all"
                )
            if ids.min() < 0 or ids.max() >= self.spec.vocab:
                raise ValueError(
                    f"prompt {row} holds tokens {int(ids.min())} to {int(ids.max())}; expected "
                    f"0 to {self.spec.vocab - 1}"
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


def _project(layer: Any, hidden: torch.Tensor, rotation: Rotation) -> list[torch.Tensor]:
    """Queries, keys and values (B, H, Q, D) of one layer, queries and keys rotated."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    queries, keys, values = (
        part(normed).unflatten(-1, (-1, attention.head_dim))
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    cos, sin = (part[:, None] for part in rotation)
    turned = [
        part * cos
        + torch.cat([-part[..., part.shape[-1] // 2 :], part[..., : part.shape[-1] // 2]], -1) * sin
        for part in (queries.transpose(1, 2), keys.transpose(1, 2))
    ]
    return [*turned, values.transpose(1, 2)]


def _attend(
    layer: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
    return scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask[:, None], scale=layer.self_attn.scaling
    )


def _finish(layer: Any, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """The rest of a layer behind its attention (B, H, Q, D)."""
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    after: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return after
