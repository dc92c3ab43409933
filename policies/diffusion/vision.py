"""Camera images and measurements to the observation tokens that condition a denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.resnet import ResNet18
from fastloop.policies.spec import TensorSpec

__all__ = ["ImageEncoder", "ObservationEncoder", "SpatialSoftmax", "VisionConfig", "module_name"]


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class VisionConfig:
    """How one camera image becomes features; the crop and sizes are the published ones.

    Attributes:
        crop_shape: (height, width) that the network sees: a random crop of every image in
            training, the central one otherwise; None shows it the whole image.
        num_keypoints: points that the spatial softmax finds.
        feature_dim: width of the features of one image.
        final_relu: rectify the features, as the encoders of robomimic and LeRobot do.
    """

    crop_shape: tuple[int, int] | None = (76, 76)
    num_keypoints: int = 32
    feature_dim: int = 64
    final_relu: bool = False


class SpatialSoftmax(nn.Module):
    """Where each feature map is high, as an expected position (Finn et al. 2016).

    Args:
        in_channels, height, width: of the feature maps.
        num_keypoints: points, each from its own 1x1 convolution of the maps.
    """

    def __init__(self, in_channels: int, height: int, width: int, num_keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(in_channels, num_keypoints, 1)
        self.register_buffer("temperature", torch.ones(1))
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height, dtype=torch.float64),
            torch.linspace(-1, 1, width, dtype=torch.float64),
            indexing="ij",
        )
        grid = torch.stack([x.flatten(), y.flatten()], dim=-1).float()
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, height, width) to (N, num_keypoints, 2), x and y in [-1, 1]."""
        attention = (self.nets(features).flatten(2) / self.temperature).softmax(dim=-1)
        return attention @ self.grid


class ImageEncoder(nn.Module):
    """One camera: crop, ResNet-18, spatial softmax, linear.

    Keys: ``backbone.<torchvision's>``, ``pool.nets.{weight,bias}``, ``pool.temperature``,
    ``linear.{weight,bias}``. The published hybrid policies (robomimic) call the same tensors
    ``backbone.nets.<n>``, ``pool`` and ``nets.3``; LeRobot calls them ``backbone.<n>``,
    ``pool.nets`` and ``out``, has no temperature, and needs `final_relu`. See `ResNet18` for n.

    Args:
        image_shape: (C, H, W) of the images.
        config: the rest.
    """

    def __init__(self, image_shape: tuple[int, ...], config: VisionConfig) -> None:
        super().__init__()
        channels, *size = image_shape
        crop = tuple(config.crop_shape or size)
        if any(part > whole for part, whole in zip(crop, size, strict=True)):
            raise ValueError(
                f"cannot crop {crop[0]}x{crop[1]} out of images of {size[0]}x{size[1]}; lower "
                "crop_shape or set it to null"
            )
        if max(crop) <= ResNet18.stride:
            raise ValueError(
                f"{crop[0]}x{crop[1]} pixels become one feature, which has no position: the "
                f"encoder would be blind; it needs more than {ResNet18.stride} on a side"
            )
        self.crop_shape = crop
        self.backbone = ResNet18(channels)
        height, width = (math.ceil(side / self.backbone.stride) for side in crop)
        self.pool = SpatialSoftmax(self.backbone.channels, height, width, config.num_keypoints)
        self.linear = nn.Linear(2 * config.num_keypoints, config.feature_dim)
        self.relu = nn.ReLU() if config.final_relu else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized images (N, C, H, W) to (N, feature_dim)."""
        cropped = (random_crop if self.training else center_crop)(images, self.crop_shape)
        if len(images) == 1 and images.device.type == "cpu" and not self.training:
            # torch convolves one image on a CPU in a way that takes longer than it does for two.
            cropped = cropped.expand(2, -1, -1, -1)
        encoded = self.relu(self.linear(self.pool(self.backbone(cropped)).flatten(1)))
        return encoded[: len(images)]


class ObservationEncoder(nn.Module):
    """Every input of a policy, side by side in the order of its spec.

    Images have an `ImageEncoder` each, at ``obs_nets.<name>`` with `module_name`; everything else
    is only normalized.

    Args:
        inputs: `PolicySpec.inputs`; three axes mean an image.
        config: how images are encoded.

    Attributes:
        width: F, of one observation token.
    """

    def __init__(self, inputs: Mapping[str, TensorSpec], config: VisionConfig) -> None:
        super().__init__()
        self.keys = tuple(inputs)
        self.obs_nets = nn.ModuleDict(
            {
                module_name(key): ImageEncoder(spec.shape, config)
                for key, spec in inputs.items()
                if len(spec.shape) == 3
            }
        )
        self.width = sum(
            config.feature_dim if len(spec.shape) == 3 else math.prod(spec.shape)
            for spec in inputs.values()
        )

    def forward(
        self, observations: Mapping[str, torch.Tensor], normalizer: LinearNormalizer
    ) -> torch.Tensor:
        """Encode every frame by itself.

        Args:
            observations: by input key, (B, O, ...); images (B, O, C, H, W), uint8 in 0..255 or
                floating point in 0..1.
            normalizer: has a field for every input; an image's has one scale, or one a channel.

        Returns:
            (B, O, F)
        """
        features = []
        for key in self.keys:
            value, name = observations[key], module_name(key)
            if name not in self.obs_nets:
                features.append(normalizer.normalize(key, value).flatten(2))
                continue
            encoder = self.obs_nets[name]
            pixels = value.flatten(0, 1)
            if not pixels.is_floating_point():
                pixels = pixels.to(encoder.linear.weight.dtype) / 255
            pixels = normalizer.normalize(key, pixels.movedim(1, -1)).movedim(-1, 1)
            features.append(encoder(pixels).unflatten(0, value.shape[:2]))
        return torch.cat(features, dim=-1)


def module_name(key: str) -> str:
    """An observation key as the name of a module, which may not contain a dot: ``:`` for ``.``.

    Keys have no colon, so replacing it the other way gives the key back.
    """
    if ":" in key:
        raise ValueError(
            f"observation key {key!r} contains ':', which stands for '.' in checkpoints"
        )
    return key.replace(".", ":")


def center_crop(images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The middle (N, C, *shape) of images (N, C, H, W), rounded as torchvision does."""
    top, left = (
        round((whole - part) / 2) for whole, part in zip(images.shape[2:], shape, strict=True)
    )
    return images[:, :, top : top + shape[0], left : left + shape[1]]


def random_crop(images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A uniformly drawn (N, C, *shape) part of each of the images (N, C, H, W)."""
    count, channels, height, width = images.shape
    device = images.device
    top = torch.randint(height - shape[0] + 1, (count, 1, 1, 1), device=device)
    left = torch.randint(width - shape[1] + 1, (count, 1, 1, 1), device=device)
    n = torch.arange(count, device=device)[:, None, None, None]
    c = torch.arange(channels, device=device)[None, :, None, None]
    rows = top + torch.arange(shape[0], device=device)[:, None]
    columns = left + torch.arange(shape[1], device=device)
    return images[n, c, rows, columns]
