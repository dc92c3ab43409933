"""Layers of stock decoders of transformers, called one by one."""

from __future__ import annotations

from typing import Any

import torch

from fastloop.accel.kernels.products import multiply_by_one_dnn

__all__ = ["Rotation", "StockLayers", "turned"]

Rotation = tuple[torch.Tensor, torch.Tensor]


class StockLayers:
    """The parts of a `LayeredModel` that are modules of a network.

    Args:
        network: with ``lm_head``; of any floating dtype, on any device. Its linear layers become
            `OneDnnLinear`.
        text: its part with ``embed_tokens``, ``layers``, ``norm`` and ``rotary_emb``.
    """

    def __init__(self, network: Any, text: Any) -> None:
        multiply_by_one_dnn(network)
        self.network, self.text = network, text
        self.layers = len(text.layers)
        self.scale = float(text.layers[0].self_attn.scaling)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.embed`."""
        embeddings: torch.Tensor = self.text.embed_tokens(ids)
        return embeddings

    @torch.no_grad()
    def rotary(self, positions: torch.Tensor) -> Rotation:
        """Cosines and sines (B, 1, Q, D), of the dtype of the network."""
        cos, sin = self.text.rotary_emb(self.text.embed_tokens.weight, positions)
        return cos[:, None], sin[:, None]

    @torch.no_grad()
    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `LayeredModel.project`."""
        block = self.text.layers[layer]
        attention, normed = block.self_attn, block.input_layernorm(hidden)
        queries, keys, values = (
            part(normed).unflatten(-1, (-1, attention.head_dim))
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):  # Qwen3
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        queries, keys = (turned(part.transpose(1, 2), rotary) for part in (queries, keys))
        return queries, keys, values.transpose(1, 2)

    @torch.no_grad()
    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.finish`."""
        block = self.text.layers[layer]
        hidden = hidden + block.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        after: torch.Tensor = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return after

    @torch.no_grad()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.head`."""
        logits: torch.Tensor = self.network.lm_head(self.text.norm(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def turned(part: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Queries or keys (B, H, Q, D) under rotary embedding, whose halves are turned as pairs."""
    cos, sin = rotation
    first, second = part.chunk(2, -1)
    return part * cos + torch.cat([-second, first], -1) * sin
