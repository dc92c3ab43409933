"""What LaViDa sees with: SigLIP less its last layer, a projector, and lines of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastloop.extras import require
from fastloop.policies.dlm.anyres import unpadded

__all__ = ["SO400M", "Eyes"]

# google/siglip-so400m-patch14-384, less the layer that is not used.
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip


class Eyes(nn.Module):
    """Views of pictures to embeddings of tokens, as LaViDa (Li et al. 2025) makes them.

    Parameters are named as in its checkpoints, less ``model.`` in front.

    Args:
        vision: fields of ``transformers.SiglipVisionConfig``; its layers are those that are used.
        width: E, of the language model.

    Raises:
        ValueError: when the fields describe no network.
        MissingExtraError: without transformers.
    """

    def __init__(self, vision: dict[str, Any], width: int) -> None:
        super().__init__()
        transformers = require("transformers", extra="vla")
        try:
            config = transformers.SiglipVisionConfig(**{**vision, "vision_use_head": False})
            config._attn_implementation = "sdpa"
            tower = transformers.SiglipVisionModel(config)
        except Exception as error:  # its fields check themselves, with exceptions of several kinds
            raise ValueError(f"no vision tower can be built from {vision}: {error}") from error
        # Older releases wrap the network once more.
        self.vision_tower = getattr(tower, "vision_model", tower)
        inner = int(config.hidden_size)
        self.mm_projector = nn.Sequential(
            nn.Linear(inner, width), nn.GELU(), nn.Linear(width, width)
        )
        self.image_newline = nn.Parameter(torch.zeros(width))

    def forward(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens of all pictures, E); see `fastloop.policies.dlm.anyres.AnyRes`.

        Args:
            pixels: (views of all, 3, side, side).
            grid: (N, 4) int64 on the host.
        """
        dtype = self.image_newline.dtype
        hidden = self.vision_tower.embeddings(pixels.to(dtype))
        # Not normalized: what a released tower's last layer but one gives.
        seen = self.vision_tower.encoder(inputs_embeds=hidden).last_hidden_state
        views = _pooled(self.mm_projector(seen))
        sizes = (1 + grid[:, 0] * grid[:, 1]).tolist()
        parts = [
            self._lines(own, *where)
            for own, where in zip(views.split(sizes), grid.tolist(), strict=True)
        ]
        return torch.cat([part.flatten(0, -2) for own in parts for part in own])

    def _lines(
        self, views: torch.Tensor, rows: int, columns: int, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole (t, t, E), and the parts as one picture, less padding, its lines ended."""
        whole, parts = views[0], views[1:]
        side = whole.shape[0]
        sheet = parts.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        lines, across = unpadded(rows * side, columns * side, height, width)
        sheet = sheet[lines.start : lines.stop, across.start : across.stop]
        ends = self.image_newline.expand(len(sheet), 1, -1)
        return whole, torch.cat([sheet, ends], 1)


def _pooled(views: torch.Tensor) -> torch.Tensor:
    """(N, P, E) to (N, t, t, E): half as many a side, rounded up, between the nearest patches."""
    side = round(views.shape[1] ** 0.5)
    square = views.transpose(1, 2).unflatten(2, (side, side))
    half = -(-side // 2)
    small = nn.functional.interpolate(square, size=(half, half), mode="bilinear")
    return small.permute(0, 2, 3, 1)
