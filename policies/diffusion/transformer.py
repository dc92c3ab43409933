"""The transformer denoiser of Diffusion Policy (Chi et al. 2023), with its published key names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

__all__ = ["SinusoidalPosEmb", "TransformerForDiffusion"]


class SinusoidalPosEmb(nn.Module):
    """Sine and cosine features of the diffusion step: (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        # In float32 from the exponent on, as the published weights were trained.
        exponents = torch.arange(half, device="cpu") * -(math.log(10_000) / (half - 1))
        self.frequencies = exponents.exp().tolist()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of `x` (B,), in float32 as published."""
        angles = x.float()[:, None] * torch.tensor(self.frequencies, device=x.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TransformerForDiffusion(nn.Module):
    """Predicts noise (or the sample, or a velocity) for a chunk of actions.

    Three forms, as published: a decoder whose memory is the time token and the observation tokens,
    encoded by an MLP (``n_cond_layers=0``, every released checkpoint) or by a transformer encoder;
    and, with ``time_as_cond=False``, an encoder alone that takes time as its first token.

    Args:
        input_dim, output_dim: width of an action token in and out.
        horizon: T, action tokens.
        n_obs_steps: O, observation tokens (`horizon` when None).
        cond_dim: width of an observation token, 0 for an unconditional network.
        n_layer, n_head, n_emb: L, H and the width of the stream.
        p_drop_emb, p_drop_attn: dropout of embeddings and of the layers.
        causal_attn: an action token sees itself and earlier ones, and observations up to its time.
        time_as_cond: time is a memory token, not an input token.
        n_cond_layers: transformer layers of the condition encoder, 0 for the MLP.
    """

    mask: torch.Tensor | None
    memory_mask: torch.Tensor | None
    decoder: Any  # nn.TransformerDecoder; None where time is an input token
    cond_pos_emb: Any  # nn.Parameter; None likewise

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        if not time_as_cond and cond_dim > 0:
            raise ValueError("observations condition the network only when time_as_cond is true")
        tokens = horizon if time_as_cond else horizon + 1
        self.n_obs_tokens = (n_obs_steps or horizon) if cond_dim > 0 else 0
        self.n_cond_tokens = 1 + self.n_obs_tokens if time_as_cond else 0
        self.horizon = horizon
        self.time_as_cond = time_as_cond
        self.n_head = n_head

        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim > 0 else None

        width = {"d_model": n_emb, "nhead": n_head, "dim_feedforward": 4 * n_emb}
        style = {
            "dropout": p_drop_attn,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        encoder_layers = n_cond_layers if time_as_cond else n_layer
        self.encoder: nn.Module
        if encoder_layers:
            layer = nn.TransformerEncoderLayer(**width, **style)
            self.encoder = nn.TransformerEncoder(layer, encoder_layers, enable_nested_tensor=False)
        else:
            self.encoder = nn.Sequential(
                nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb)
            )
        self.decoder = None
        self.cond_pos_emb = None
        if time_as_cond:
            self.cond_pos_emb = nn.Parameter(torch.zeros(1, self.n_cond_tokens, n_emb))
            self.decoder = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**width, **style), n_layer
            )
        self.register_buffer("mask", causal_mask(tokens) if causal_attn else None)
        sees_memory = causal_attn and self.n_obs_tokens > 0
        self.register_buffer(
            "memory_mask", memory_mask(tokens, self.n_cond_tokens) if sees_memory else None
        )
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        # Published checkpoints carry this empty parameter; it is how upstream finds its device.
        self._dummy_variable = nn.Parameter(torch.empty(0))
        self.apply(_init_weights)
        for table in (self.pos_emb, self.cond_pos_emb):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, cond: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Denoise one step.

        Args:
            sample: (B, T, input_dim) noisy actions.
            timestep: scalar or (B,).
            cond: (B, O, cond_dim) observation tokens.

        Returns:
            (B, T, output_dim)
        """
        tokens = self.input_emb(sample)
        time = self.time_token(timestep, len(sample), sample)
        if self.decoder is None:
            stream = torch.cat([time, tokens], dim=1)
            stream = self.drop(stream + self.pos_emb[:, : stream.shape[1]])
            stream = self.encoder(stream, mask=self.mask)[:, 1:]
        else:
            stream = self.drop(tokens + self.pos_emb[:, : tokens.shape[1]])
            stream = self.decoder(
                tgt=stream,
                memory=self.memory(time, cond),
                tgt_mask=self.mask,
                memory_mask=self.memory_mask,
                tgt_is_causal=False,  # spares a host sync that would only look for a faster kernel
            )
        return self.head(self.ln_f(stream))

    def time_token(
        self, timestep: torch.Tensor | float, batch: int, like: torch.Tensor
    ) -> torch.Tensor:
        """The token (B, 1, E) of a diffusion step."""
        timestep = torch.as_tensor(timestep, device=like.device)
        return self.time_emb(timestep.expand(batch)).to(like.dtype)[:, None]

    def memory(self, time: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        """What the decoder attends to: (B, 1 + O, E), the time token first."""
        if self.cond_obs_emb is not None:
            time = torch.cat([time, self.cond_obs_emb(cond)], dim=1)
        return self.encoder(self.drop(time + self.cond_pos_emb))

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """AdamW groups: decay on the weights of linear and attention layers, on nothing else."""
        decayed = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, nn.Linear | nn.MultiheadAttention)
            for name, parameter in module.named_parameters(recurse=False)
            if name.endswith("weight")
        }
        groups: dict[bool, list] = {True: [], False: []}
        for parameter in self.parameters():
            if parameter.numel():
                groups[id(parameter) in decayed].append(parameter)
        return [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]


def causal_mask(tokens: int) -> torch.Tensor:
    """(tokens, tokens) additive mask: 0 on and below the diagonal, -inf above."""
    return torch.full((tokens, tokens), -math.inf).triu(1)


def memory_mask(tokens: int, cond_tokens: int) -> torch.Tensor:
    """(tokens, cond_tokens) additive mask: action t sees time (0) and observations up to t."""
    t = torch.arange(tokens)[:, None]
    s = torch.arange(cond_tokens)[None]
    return torch.zeros(tokens, cond_tokens).masked_fill(t < s - 1, -math.inf)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
