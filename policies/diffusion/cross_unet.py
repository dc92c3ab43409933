"""The convolutional denoiser whose actions attend to the observations, one token a frame.

One vector of all observations (`ConditionalUnet1D`) serves a short past. A U-Net that reads the
frames by cross-attention is said to keep up with a longer one (arXiv 2606.16447).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fastloop.policies.diffusion.unet import ConditionalUnet1D

__all__ = ["CrossAttention", "CrossUnet1D"]


class CrossAttention(nn.Module):
    """What the features of the actions read in the observation tokens (pre-norm, multi-head).

    Args:
        channels: C of the features.
        width: E of the tokens.
        heads: H; a divisor of C.
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not fit {channels} channels; expected a divisor")
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def memory(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keys and values (2, B, H, O, C / H) of tokens (B, O, E)."""
        packed = self.key_value(tokens).unflatten(-1, (2, self.heads, -1))
        return packed.permute(2, 0, 3, 1, 4)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """What is to be added to the features (B, C, T), of their shape."""
        query = self.query(self.norm(x.mT)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heads = scaled_dot_product_attention(query, *memory)
        return self.out(heads.transpose(1, 2).flatten(2)).mT


class CrossUnet1D(ConditionalUnet1D):
    """`ConditionalUnet1D` whose blocks are told the diffusion step alone, with a cross-attention to
    the observation tokens behind the blocks of every level.

    Args:
        input_dim: width of an action token.
        cond_dim: width of an observation token.
        n_obs_steps: O, observation tokens.
        n_emb: E, what an observation token is embedded in before it is attended to.
        n_head: H, a divisor of all `down_dims`.
        diffusion_step_embed_dim, down_dims, kernel_size, n_groups, cond_predict_scale: of
            `ConditionalUnet1D`.
    """

    def __init__(
        self,
        input_dim: int,
        cond_dim: int,
        n_obs_steps: int,
        n_emb: int = 256,
        n_head: int = 4,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ) -> None:
        super().__init__(
            input_dim,
            diffusion_step_embed_dim=diffusion_step_embed_dim,
            down_dims=down_dims,
            kernel_size=kernel_size,
            n_groups=n_groups,
            cond_predict_scale=cond_predict_scale,
        )
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb)
        self.cond_pos_emb = nn.Parameter(0.02 * torch.randn(1, n_obs_steps, n_emb))

        def attention(channels: int) -> CrossAttention:
            return CrossAttention(channels, n_emb, n_head)

        self.down_attention = nn.ModuleList(map(attention, down_dims))
        self.mid_attention = attention(down_dims[-1])
        self.up_attention = nn.ModuleList(map(attention, reversed(down_dims[:-1])))

    def forward(  # type: ignore[override]
        self, sample: torch.Tensor, timestep: torch.Tensor | float, cond: torch.Tensor
    ) -> torch.Tensor:
        """Denoise one step.

        Args:
            sample: (B, T, input_dim) noisy actions; T is a multiple of `stride`.
            timestep: scalar or (B,).
            cond: (B, O, cond_dim) observation tokens.

        Returns:
            (B, T, input_dim)
        """
        self.check_horizon(sample)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.diffusion_step_encoder[0](timestep).to(sample.dtype)
        time = self.diffusion_step_encoder[1:](time)
        tokens = self.tokens(cond)

        def attend(attention: CrossAttention, x: torch.Tensor) -> torch.Tensor:
            return x + attention(x, attention.memory(tokens))

        x = sample.mT
        skips = []
        for (resnet, resnet2, downsample), attention in zip(
            self.down_modules, self.down_attention, strict=True
        ):
            skips.append(attend(attention, resnet2(resnet(x, time), time)))
            x = downsample(skips[-1])
        for mid in self.mid_modules:
            x = mid(x, time)
        x = attend(self.mid_attention, x)
        for (resnet, resnet2, upsample), attention in zip(
            self.up_modules, self.up_attention, strict=True
        ):
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(attend(attention, resnet2(resnet(x, time), time)))
        return self.final_conv(x).mT

    def tokens(self, cond: torch.Tensor) -> torch.Tensor:
        """What is attended to, (B, O, E), of observation tokens (B, O, D)."""
        return self.cond_obs_emb(cond) + self.cond_pos_emb
