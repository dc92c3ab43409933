"""The diffusion transformer of LeRobot's multi-task policy (adaLN-Zero), with its key names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from fastloop.policies.diffusion.transformer import SinusoidalPosEmb

__all__ = ["DiT", "DiTBlock", "modulate"]


class DiT(nn.Module):
    """Predicts noise (or the sample, or a velocity) for a chunk of actions.

    The transformer of Peebles and Xie 2023 over action tokens, as in LeRobot's ``multi_task_dit``
    (its ``noise_predictor.*``): time and observations are one vector, which shifts, scales and
    gates every branch; there is no cross-attention and no norm before the output.

    Args:
        input_dim: width A of an action, in and out.
        horizon: T, action tokens at most.
        global_cond_dim: O D, numbers of all observation tokens.
        hidden_dim, num_layers, num_heads: E, L and H.
        dropout: of the attention weights in training.
        timestep_embed_dim: width of the time features.
        use_rope, rope_base: rotary positions in the attention (Su et al. 2021), half by half.
        use_positional_encoding: learned positions added to the action tokens.
        reversed_flow: the weights are of a flow whose time runs from 0 at noise to 1 at data and
            whose velocity points to the data. Samplers here count the other way, so both are
            turned round.
    """

    def __init__(
        self,
        input_dim: int,
        horizon: int,
        global_cond_dim: int,
        hidden_dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        dropout: float = 0.1,
        timestep_embed_dim: int = 256,
        use_rope: bool = True,
        rope_base: float = 10_000.0,
        use_positional_encoding: bool = False,
        reversed_flow: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads or (use_rope and hidden_dim // num_heads % 2):
            raise ValueError(
                f"{num_heads} heads do not fit a width of {hidden_dim}; expected a divisor"
                + (" that leaves each head an even width, for rotary positions" * use_rope)
            )
        if timestep_embed_dim < 4 or timestep_embed_dim % 2:
            raise ValueError(
                f"timestep_embed_dim must be even and at least 4, got {timestep_embed_dim}"
            )
        self.reversed_flow = reversed_flow
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(timestep_embed_dim),
            nn.Linear(timestep_embed_dim, 2 * timestep_embed_dim),
            nn.GELU(),
            nn.Linear(2 * timestep_embed_dim, timestep_embed_dim),
            nn.GELU(),
        )
        self.input_proj = nn.Linear(input_dim, hidden_dim)
        self.register_parameter("pos_embedding", None)
        if use_positional_encoding:
            self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, horizon, hidden_dim))
        features = timestep_embed_dim + global_cond_dim
        rope = rope_table(horizon, hidden_dim // num_heads, rope_base) if use_rope else None
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(hidden_dim, num_heads, features, dropout, rope) for _ in range(num_layers)
        )
        self.output_proj = nn.Linear(hidden_dim, input_dim)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, cond: torch.Tensor
    ) -> torch.Tensor:
        """Denoise one step.

        Args:
            sample: (B, T, input_dim) noisy actions.
            timestep: scalar or (B,).
            cond: (B, O, D) observation tokens, or (B, O D).

        Returns:
            (B, T, input_dim)
        """
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        features = torch.cat([self.time_features(timestep), cond.flatten(1)], dim=-1)
        stream = self.embed(sample)
        for block in self.transformer_blocks:
            stream = block(stream, features)
        return self.answer(stream)

    def time_features(self, timestep: torch.Tensor) -> torch.Tensor:
        """(N,) steps to (N, timestep_embed_dim)."""
        time = self.time_mlp[0](1 - timestep if self.reversed_flow else timestep)
        features: torch.Tensor = self.time_mlp[1:](time.to(self.input_proj.weight.dtype))
        return features

    def embed(self, sample: torch.Tensor) -> torch.Tensor:
        """The stream (B, T, E) before the first block."""
        stream: torch.Tensor = self.input_proj(sample)
        if self.pos_embedding is None:
            return stream
        return stream + self.pos_embedding[:, : sample.shape[1]]

    def answer(self, stream: torch.Tensor) -> torch.Tensor:
        """The output (B, T, input_dim) of the stream after the last block."""
        output: torch.Tensor = self.output_proj(stream)
        return -output if self.reversed_flow else output


class DiTBlock(nn.Module):
    """Self-attention and MLP, each on a normed stream that the features shift and scale, each added
    to the stream through a gate of the features; the gates start at 0 (adaLN-Zero).

    Args:
        width, heads: E and H.
        features: numbers that modulate.
        dropout: of the attention weights in training.
        rope: (2, T, D) from `rope_table`, or None; decides which key names the attention has.
    """

    rope: torch.Tensor | None
    heads: int

    def __init__(
        self, width: int, heads: int, features: int, dropout: float, rope: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.register_buffer("rope", rope, persistent=False)
        if rope is None:
            self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.attn = nn.ModuleDict(
                {"qkv_proj": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)}
            )
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(features, 6 * width))
        nn.init.zeros_(self.adaLN_modulation[1].weight)
        nn.init.zeros_(self.adaLN_modulation[1].bias)

    def forward(self, stream: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The stream (B, T, E) with both branches added; `features` (B, F)."""
        modulation = self.adaLN_modulation(features)[:, None].chunk(6, dim=-1)
        shift, scale, gate = modulation[:3]
        stream = stream + gate * self.attention(modulate(self.norm1(stream), shift, scale))
        shift, scale, gate = modulation[3:]
        return stream + gate * self.mlp(modulate(self.norm2(stream), shift, scale))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Self-attention (B, T, E) of modulated tokens, every token sees all."""
        if self.rope is None:
            held = self.multihead_attn
            qkv, out = linear(x, held.in_proj_weight, held.in_proj_bias), held.out_proj
        else:
            qkv, out = self.attn["qkv_proj"](x), self.attn["out_proj"]
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if self.rope is not None:
            q, k = rotate(q, self.rope), rotate(k, self.rope)
        dropout = self.dropout if self.training else 0.0
        heads = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        merged: torch.Tensor = out(heads.transpose(1, 2).flatten(2))
        return merged


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`x` (B, T, E) scaled by 1 + `scale` and shifted, both (B, 1, E)."""
    return x * (1 + scale) + shift


def rope_table(tokens: int, width: int, base: float) -> torch.Tensor:
    """Cosines and sines (2, tokens, width) of rotary positions, the two halves of a head alike.

    In float32 whatever the network's dtype, as the published weights were trained.
    """
    rates = 1 / base ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(tokens).float(), rates).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Turn element i of (..., T, D) together with element i + D / 2, by the angle of its token."""
    cos, sin = rope[:, : x.shape[-2]]
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin
