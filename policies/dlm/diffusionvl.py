"""DiffusionVL (arXiv 2512.15713): Qwen2.5-VL made to write block by block, blocks see themselves.

Vision tower and projector are those of Qwen2.5-VL. A token of a picture has a position as one of
text has, and with one count for all axes its decoder is a Qwen2; a logit speaks of its own slot.
Blocks are counted from the start of the prompt (`fastloop.policies.dlm.grid`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastloop.accel.decoding.model import Regime
from fastloop.extras import require
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors
from fastloop.policies.checkpoints.published import make_config, make_network, read_weights
from fastloop.policies.dlm.adapter import TextAdapter
from fastloop.policies.dlm.pictured import Pictured, fill
from fastloop.policies.vla.images import PatchConfig
from fastloop.policies.vla.manifest import MANIFEST, Manifest

__all__ = ["ADAPTER", "DiffusionVLAdapter", "QwenEyes"]

PLACE = 151655  # <|image_pad|>
PIXELS = {"min_pixels": 384 * 384, "max_pixels": 512 * 512}
# In trained checkpoints; converted ones have files of their own instead, without what is in front.
TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector.merger."
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip


class QwenEyes(nn.Module):
    """The vision tower of Qwen2.5-VL with its projector.

    Args:
        config: ``transformers.Qwen2_5_VLVisionConfig``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        tower = require("transformers", extra="vla").Qwen2_5_VisionTransformerPretrainedModel
        self.visual = tower(config)

    def forward(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, E) of what `PatchConfig.cut` makes."""
        where = grid.to(pixels.device)
        seen: torch.Tensor = self.visual(pixels.to(self.visual.dtype), grid_thw=where).pooler_output
        return seen


@dataclass(frozen=True)
class DiffusionVLAdapter:
    """See `Adapter`. The decoder is in ``model.safetensors``, vision either too, or in
    ``vision_tower.safetensors`` and ``projector.safetensors``, its sizes in ``vision_config.json``.
    """

    model_types: tuple[str, ...] = ("diffusionvl_qwenvl",)

    def load(
        self, folder: Path, described: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> Pictured:
        """See `Adapter.load`."""
        base = TextAdapter(
            "DiffusionVL", self.model_types, "Qwen2", Regime.BLOCK_CAUSAL, logit_shift=0,
            mask_id=151671, block_size=described.get("bd3lm_block_size") or 4, config=_text,
        )  # fmt: skip
        try:
            fields = base.config(described)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}/config.json does not say {error}") from error
        config = make_config("Qwen2Config", folder, fields)
        apart = folder / "vision_config.json"
        told = read_json(apart) if apart.exists() else described.get("vision_config")
        if not isinstance(told, Mapping):
            raise CheckpointError(f"{folder} says no sizes of its vision tower: {apart} is missing")
        vision = make_config("Qwen2_5_VLVisionConfig", folder, told)
        try:
            eyes = QwenEyes(vision)
        except Exception as error:  # sizes that do not fit each other
            raise CheckpointError(f"{folder}: no vision tower of {dict(told)}: {error}") from error
        manifest = base.manifest(folder, described, config.vocab_size)
        weights, files = read_weights(folder, _key)
        for name, front in (("vision_tower", "eyes."), ("projector", "eyes.merger.")):
            path = folder / f"{name}.safetensors"
            if path.exists():
                weights |= {front + key: part for key, part in read_safetensors(path).items()}
                files = [*files, path]
        seen = {key for key in weights if key.startswith("eyes.")}
        fill(eyes.visual, {key.removeprefix("eyes."): weights[key] for key in seen}, folder)
        network = make_network(
            "Qwen2ForCausalLM", config,
            {key: value for key, value in weights.items() if key not in seen},
            dtype=dtype, folder=folder, described=described, what=base.name,
        )  # fmt: skip
        said = [p for p in (folder / "config.json", folder / MANIFEST, apart) if p.exists()]
        digest = file_digest(*said, *files)
        spec = base.spec(manifest, vocab=config.vocab_size, digest=digest)
        try:
            return Pictured(
                network.to(device), spec, eyes=eyes, pictures=_pictures(folder, manifest, vision),
                place=described.get("image_token_id", PLACE),
            )  # fmt: skip
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def _text(described: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``Qwen2Config``: of text_config, or of the whole, where they stand as well."""
    text = described.get("text_config") or described
    rope = text.get("rope_parameters") or {}
    return {
        **{name: text[name] for name in SIZES},
        "rope_parameters": {
            "rope_type": "default", "rope_theta": rope.get("rope_theta") or text["rope_theta"],
        },
        "tie_word_embeddings": described.get(
            "tie_word_embeddings", text.get("tie_word_embeddings", False)
        ),
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip


def _pictures(folder: Path, manifest: Manifest, vision: Any) -> PatchConfig:
    """As its authors size pictures, where ``fastloop.json`` says nothing else."""
    path = folder / MANIFEST
    told = read_json(path) if path.exists() else {}
    sizes = {name: getattr(manifest, name) if name in told else PIXELS[name] for name in PIXELS}
    return PatchConfig(
        **sizes, patch=vision.patch_size, merge=vision.spatial_merge_size,
        frames=vision.temporal_patch_size,
    )  # fmt: skip


def _key(key: str) -> str:
    """What a weight is called in the stock decoder, or in the vision tower, after "eyes."."""
    for front, place in ((TOWER, "eyes."), (PROJECTOR, "eyes.merger.")):
        if key.startswith(front):
            return place + key.removeprefix(front)
    return key


ADAPTER = DiffusionVLAdapter()
