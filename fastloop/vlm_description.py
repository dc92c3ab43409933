"""What the folder of a vision-language model holds, in words."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fastloop.accel.decoding.choose import Greedy
from fastloop.accel.decoding.model import LanguageModel
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.vla.canvas import Layout, build_layout
from fastloop.policies.vla.checkpoint import TOKENIZER, VLMCheckpoint, load_vlm
from fastloop.policies.vla.decoding import DRIVERS, DecodingConfig, build_driver
from fastloop.policies.vla.policy import IMAGES, INTENT, STATES, VisionLanguagePlanner
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import FileTokenizer

__all__ = ["describe_vlm"]


def describe_vlm(folder: str | Path, *, keys: bool = False) -> dict[str, Any]:
    """What a vision-language model is, as plain values for printing.

    Args:
        folder: that `load_vlm` reads.
        keys: also list every tensor with its shape.

    Raises:
        CheckpointError: as `load_vlm`, and where its tokenizer cannot write its schema.
    """
    loaded = load_vlm(folder, dtype="bfloat16")  # half the memory; nothing is computed
    told, network, config = loaded.manifest, loaded.network, loaded.network.config
    text, vision = config.text_config, config.vision_config
    size = f"{told.min_pixels} to {told.max_pixels} pixels"
    described = {
        "kind": "vision_language",
        "plans": (inspect.getdoc(VisionLanguagePlanner) or "").split("\n")[0],
        "digest": loaded.digest,
        "network": config.model_type,
        "arch": {
            "language": f"{text.num_hidden_layers} layers of {text.hidden_size}, "
            f"{text.num_attention_heads} heads, {text.num_key_value_heads} of keys and values",
            "vision": f"{vision.depth} layers of {vision.hidden_size}, patches of "
            f"{vision.patch_size * vision.spatial_merge_size} pixels a token",
            "vocabulary": text.vocab_size,
            "window": f"{text.max_position_embeddings} tokens",
        },
        "parameters": sum(weight.numel() for weight in loaded.network.parameters()),
        "of which vision": sum(
            weight.numel() for weight in loaded.network.model.visual.parameters()
        ),
        "inputs": {
            STATES: "float32 [16, 6]",
            INTENT: "int64 []",
            **{IMAGES + camera: f"uint8 [3, H, W], read at {size}" for camera in told.cameras},
        },
        "prompt": told.prompt,
        "regime": told.regime,
        "block_size": told.block_size,
        "ids": {"mask": told.mask_id, "null": told.null_id, "stop": told.stop_id},
        "decoding": ", ".join(
            name for name in DRIVERS if _can(name, Qwen25VL(network, loaded.spec))
        ),
        **_answer(loaded),
        "training": dict(told.training),
    }
    if keys:
        described["keys"] = {k: list(v.shape) for k, v in network.state_dict().items()}
    return described


def _can(driver: str, model: LanguageModel) -> bool:
    try:
        build_driver(DecodingConfig(driver=driver), model, Greedy())
    except ValueError:
        return False
    return True


def _answer(loaded: VLMCheckpoint) -> dict[str, Any]:
    """The schema, and how many tokens each of its sections takes."""
    if loaded.schema is None:
        return {"schema": None}
    try:
        tokenizer = FileTokenizer(loaded.folder / TOKENIZER)
        layout = build_layout(load_schema(loaded.schema), tokenizer, vocab=loaded.spec.vocab)
    except ValueError as error:
        raise CheckpointError(f"{loaded.folder}: {error}") from error
    canvas = layout.canvas
    return {
        "schema": layout.schema.name,
        "answer": f"{len(canvas)} tokens, {canvas.values} of them values",
        "sections": {name: _section(layout, i) for i, name in enumerate(canvas.sections)},
    }


def _section(layout: Layout, index: int) -> str:
    canvas = layout.canvas
    inside = canvas.section == index
    values = inside & ~canvas.given
    blocks = len(canvas.block[values].unique())
    return (
        f"{int(inside.sum())} tokens, {int(values.sum())} of them values, in {blocks} "
        f"block{'s' if blocks > 1 else ''}"
    )
