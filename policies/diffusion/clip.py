"""Instructions and camera images through CLIP (Radford et al. 2021), as the condition of LeRobot's
multi-task policy has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.vision import center_crop, random_crop
from fastloop.policies.spec import TensorSpec

__all__ = ["TOKENS", "ClipConfig", "ClipEncoder", "ClipText", "ClipVision"]

TOKENS = "observation.language.tokens"
HEAD = 64  # width of a head in every CLIP that was published


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class ClipConfig:
    """Sizes of a `ClipEncoder`, those of ``clip-vit-base-patch16`` by default.

    Attributes:
        text_width, text_layers, vocabulary, max_tokens: of the text transformer.
        text_dim: width of the instruction's features.
        vision_width, vision_layers, patch, image_size: of the vision transformer, sizes in pixels.
        resize_shape: (height, width) to which images are resized first, None for as they are.
        crop_shape: (height, width) that is cut out then, at random in training; None for all.
        separate_cameras: each camera has a transformer of its own.
    """

    text_width: int = 512
    text_layers: int = 12
    vocabulary: int = 49_408
    max_tokens: int = 77
    text_dim: int = 512
    vision_width: int = 768
    vision_layers: int = 12
    patch: int = 16
    image_size: int = 224
    resize_shape: tuple[int, int] | None = None
    crop_shape: tuple[int, int] | None = (224, 224)
    separate_cameras: bool = False


class ClipEncoder(nn.Module):
    """Every input of a policy, side by side in the order of its spec.

    Images go through CLIP's vision transformer, the tokens of the instruction (`TOKENS`) through
    its text transformer; everything else is only normalized.

    Args:
        inputs: `PolicySpec.inputs`; three axes mean an image, and `TOKENS` is among them.
        config: the sizes.

    Attributes:
        width: F, of one observation token.
    """

    def __init__(self, inputs: Mapping[str, TensorSpec], config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.keys = tuple(inputs)
        self.images = [key for key, spec in inputs.items() if len(spec.shape) == 3]
        for key in self.images:
            _check_size(key, inputs[key].shape, config)
        self.text = ClipText(config)
        self.projection = nn.Linear(config.text_width, config.text_dim)
        count = len(self.images) if config.separate_cameras else min(len(self.images), 1)
        self.cameras = nn.ModuleList(ClipVision(config) for _ in range(count))
        low = [s for key, s in inputs.items() if key not in self.images and key != TOKENS]
        self.width = (
            sum(math.prod(spec.shape) for spec in low)
            + config.vision_width * len(self.images)
            + config.text_dim
        )

    def forward(
        self, observations: Mapping[str, torch.Tensor], normalizer: LinearNormalizer
    ) -> torch.Tensor:
        """Encode every frame by itself, and the newest instruction for all of them.

        Args:
            observations: by input key, (B, O, ...); images (B, O, C, H, W), uint8 in 0..255 or
                floating point in 0..1; tokens (B, O, S) int64.
            normalizer: has a field for every input; an image's has one number a channel.

        Returns:
            (B, O, F)
        """
        features = []
        for key in self.keys:
            value = observations[key]
            if key == TOKENS:
                text = self.projection(self.text(value[:, -1]))
                features.append(text[:, None].expand(-1, value.shape[1], -1))
            elif key in self.images:
                features.append(self._seen(key, value, normalizer))
            else:
                features.append(normalizer.normalize(key, value).flatten(2))
        return torch.cat(features, dim=-1)

    def _seen(self, key: str, images: torch.Tensor, normalizer: LinearNormalizer) -> torch.Tensor:
        camera = self.images.index(key) if self.config.separate_cameras else 0
        pixels = images.flatten(0, 1)
        if not pixels.is_floating_point():
            pixels = pixels.to(self.projection.weight.dtype) / 255
        pixels = normalizer.normalize(key, pixels.movedim(1, -1)).movedim(-1, 1)
        if self.config.resize_shape:
            pixels = interpolate(pixels, self.config.resize_shape, mode="bilinear", antialias=True)
        if self.config.crop_shape:
            pixels = (random_crop if self.training else center_crop)(pixels, self.config.crop_shape)
        features: torch.Tensor = self.cameras[camera](pixels)
        return features.unflatten(0, images.shape[:2])


class ClipText(nn.Module):
    """The text transformer, with the key names of ``transformers``' ``CLIPTextModel``."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.text_width
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocabulary, width),
                "position_embedding": nn.Embedding(config.max_tokens, width),
            }
        )
        self.encoder = _Encoder(width, config.text_layers, causal=True)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, S) int64 to the features (N, width) of the first end mark, the highest token.

        A token sees only those before it, so what pads the text behind its end changes nothing.
        """
        positions = self.embeddings["position_embedding"].weight[: tokens.shape[1]]
        stream = self.encoder(self.embeddings["token_embedding"](tokens) + positions)
        end = tokens.argmax(dim=-1)[:, None, None].expand(-1, 1, stream.shape[-1])
        features: torch.Tensor = self.final_layer_norm(stream.gather(1, end)[:, 0])
        return features


class ClipVision(nn.Module):
    """The vision transformer, with the key names of ``transformers``' ``CLIPVisionModel``, whose
    last norm is left out: the features are those of the class token before it.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(3, width, patch, patch, bias=False),
                "position_embedding": nn.Embedding((config.image_size // patch) ** 2 + 1, width),
            }
        )
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(width))
        self.pre_layrnorm = nn.LayerNorm(width)  # spelled as published
        self.encoder = _Encoder(width, config.vision_layers, causal=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized images (N, 3, image_size, image_size) to (N, width)."""
        patches = self.embeddings["patch_embedding"](images).flatten(2).mT
        first = self.embeddings.class_embedding.expand(len(images), 1, -1)
        stream = torch.cat([first, patches], dim=1) + self.embeddings["position_embedding"].weight
        features: torch.Tensor = self.encoder(self.pre_layrnorm(stream))[:, 0]
        return features


class _Encoder(nn.Module):
    def __init__(self, width: int, layers: int, *, causal: bool) -> None:
        super().__init__()
        if width % HEAD:
            raise ValueError(f"CLIP's heads are {HEAD} wide, which does not divide {width}")
        self.layers = nn.ModuleList(_Layer(width, causal) for _ in range(layers))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            stream = layer(stream)
        return stream


class _Layer(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        x = self.layer_norm1(stream)
        q, k, v = (
            self.self_attn[name](x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        heads = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        stream = stream + self.self_attn["out_proj"](heads.transpose(1, 2).flatten(2))
        hidden = self.mlp["fc1"](self.layer_norm2(stream))
        activated = hidden * torch.sigmoid(1.702 * hidden)  # CLIP's own approximation of GELU
        return stream + self.mlp["fc2"](activated)


def _check_size(key: str, shape: tuple[int, ...], config: ClipConfig) -> None:
    size = config.crop_shape or config.resize_shape or shape[1:]
    if tuple(size) != (config.image_size, config.image_size):
        raise ValueError(
            f"{key} reaches the vision transformer as {size[0]}x{size[1]} pixels, and its weights "
            f"are for {config.image_size}x{config.image_size}: set the resize and crop shapes so "
            "that they agree"
        )
