"""The convolutional denoiser of Diffusion Policy (Chi et al. 2023), with its published keys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from fastloop.policies.diffusion.transformer import SinusoidalPosEmb

__all__ = ["ConditionalUnet1D"]


class Conv1dBlock(nn.Module):
    """Convolution, group norm, Mish: (B, in_channels, T) to (B, out_channels, T)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int = 8
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, T) to (B, out_channels, T)."""
        return self.block(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks with the condition between them (FiLM, Perez et al. 2018).

    The condition shifts every channel, and scales it too where `cond_predict_scale` says so.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        n_groups: int,
        cond_predict_scale: bool,
    ) -> None:
        super().__init__()
        self.cond_predict_scale = cond_predict_scale
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        film = 2 * out_channels if cond_predict_scale else out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, film))
        self.residual_conv = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv1d(in_channels, out_channels, 1)
        )

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, T) and (B, cond_dim) to (B, out_channels, T)."""
        out = self.blocks[0](x)
        film = self.cond_encoder(cond)[..., None]
        if self.cond_predict_scale:
            scale, shift = film.chunk(2, dim=1)
            out = scale * out + shift
        else:
            out = out + film
        return self.blocks[1](out) + self.residual_conv(x)


class Downsample(nn.Module):
    """Halves T."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, T) to (B, channels, T / 2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles T."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, T) to (B, channels, 2 T)."""
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """Predicts noise (or the sample, or a velocity) for a chunk of actions.

    Three habits of the published network are kept, since its checkpoints were trained with them:
    the skip of the full-resolution level is never read, the second local-condition block has no
    effect, and the last block has 8 groups whatever `n_groups` is.

    Args:
        input_dim: width of an action token.
        local_cond_dim: width of a condition token beside every action token, None for none.
        global_cond_dim: width of the one condition, None for none.
        diffusion_step_embed_dim: width of the embedding of the diffusion step.
        down_dims: channels of each level; every level after the first halves T.
        kernel_size: of the convolutions along T, odd.
        n_groups: of the group norms.
        cond_predict_scale: the condition scales channels as well as shifting them.
    """

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ) -> None:
        super().__init__()
        self.local_cond_dim = local_cond_dim
        self.global_cond_dim = global_cond_dim
        self.stride = 2 ** (len(down_dims) - 1)
        embed = diffusion_step_embed_dim
        cond_dim = embed + (global_cond_dim or 0)
        levels = list(pairwise((input_dim, *down_dims)))

        def block(in_channels: int, out_channels: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                in_channels, out_channels, cond_dim, kernel_size, n_groups, cond_predict_scale
            )

        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed),
            nn.Linear(embed, 4 * embed),
            nn.Mish(),
            nn.Linear(4 * embed, embed),
        )
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            self.local_cond_encoder = nn.ModuleList(
                [block(local_cond_dim, down_dims[0]), block(local_cond_dim, down_dims[0])]
            )
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    block(before, after),
                    block(after, after),
                    Downsample(after) if level < len(levels) - 1 else nn.Identity(),
                ]
            )
            for level, (before, after) in enumerate(levels)
        )
        self.mid_modules = nn.ModuleList(block(down_dims[-1], down_dims[-1]) for _ in range(2))
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * after, before), block(before, before), Upsample(before)])
            for before, after in reversed(levels[1:])
        )
        self.final_conv = nn.Sequential(
            Conv1dBlock(down_dims[0], down_dims[0], kernel_size),
            nn.Conv1d(down_dims[0], input_dim, 1),
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        local_cond: torch.Tensor | None = None,
        global_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise one step.

        Args:
            sample: (B, T, input_dim) noisy actions; T is a multiple of `stride`.
            timestep: scalar or (B,).
            local_cond: (B, T, local_cond_dim).
            global_cond: (B, global_cond_dim).

        Returns:
            (B, T, input_dim)
        """
        self.check_horizon(sample)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        cond = self.diffusion_step_encoder[0](timestep).to(sample.dtype)
        cond = self.diffusion_step_encoder[1:](cond)
        if self.global_cond_dim is not None:
            cond = torch.cat([cond, global_cond], dim=-1)

        x = sample.mT
        skips = []
        for level, (resnet, resnet2, downsample) in enumerate(self.down_modules):
            x = resnet(x, cond)
            if level == 0 and self.local_cond_encoder is not None:
                x = x + self.local_cond_encoder[0](local_cond.mT, cond)
            x = resnet2(x, cond)
            skips.append(x)
            x = downsample(x)
        for mid in self.mid_modules:
            x = mid(x, cond)
        for resnet, resnet2, upsample in self.up_modules:
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(resnet2(resnet(x, cond), cond))
        return self.final_conv(x).mT

    def check_horizon(self, sample: torch.Tensor) -> None:
        """Insist that the levels can halve T of the sample (B, T, A).

        Raises:
            ValueError: T is no multiple of `stride`.
        """
        if sample.shape[1] % self.stride:
            raise ValueError(
                f"a U-Net of {len(self.down_modules)} levels needs a horizon that is a multiple of "
                f"{self.stride}, got {sample.shape[1]}"
            )
