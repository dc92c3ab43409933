"""Folders of vision-language models: read without running anything from them, and written.

A folder is one of Hugging Face's: ``config.json``, weights in safetensors, ``tokenizer.json``. What
these do not say (which answer the model writes, which prompt and cameras it was trained with) is in
``fastloop.json``, see `Manifest`. Released checkpoints of Fast-dDrive and Fast-dVLM come without it
and are known by their configuration.

They name classes of their own (``auto_map``), which are not run: their weights are those of the
stock Qwen2.5-VL, and what their code adds is decoding, which is done here. Weights that the stock
network has no place for are refused.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.checkpoints.published import (
    make_config,
    make_network,
    quietly,
    read_config,
    read_weights,
    weights_dtype,
)
from fastloop.policies.vla.manifest import CONVERTED, MANIFEST, STOCK, Manifest, read_manifest

__all__ = ["VLMCheckpoint", "is_vlm", "load_vlm", "save_vlm"]

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class VLMCheckpoint:
    """A model that has been read.

    Attributes:
        network: ``transformers.Qwen2_5_VLForConditionalGeneration``.
        manifest: what it was taught.
        folder: that it was read from.
        digest: sha256 of what was read.
    """

    network: Any
    manifest: Manifest
    folder: Path
    digest: str

    @property
    def spec(self) -> ModelSpec:
        """What the decoding engine has to know."""
        told = self.manifest
        return ModelSpec(
            regime=Regime(told.regime), vocab=self.network.config.text_config.vocab_size,
            mask_id=told.mask_id, stop_ids=told.stop_ids, null_id=told.null_id, logit_shift=1,
            block_size=told.block_size, digest=self.digest,
        )  # fmt: skip

    @property
    def schema(self) -> str | Path | None:
        """What `fastloop.policies.vla.schema.load_schema` takes."""
        name = self.manifest.schema
        return self.folder / name if name and name.endswith((".yaml", ".yml")) else name


def is_vlm(path: str | Path) -> bool:
    """Whether this is a folder of a vision-language model that `load_vlm` is for.

    Raises:
        CheckpointError: when its ``config.json`` is damaged.
    """
    config = Path(path) / "config.json"
    return config.is_file() and read_json(config).get("model_type") in (STOCK, CONVERTED)


def load_vlm(
    folder: str | Path, *, dtype: str = "", device: torch.device | str = "cpu"
) -> VLMCheckpoint:
    """Read a model by the path of its folder; nothing is downloaded, no code of it is run.

    Keys may be of either layout, flat (``model.layers.0``, ``visual.blocks.0``) or nested
    (``model.language_model.layers.0``, ``model.visual.blocks.0``), in one file or in shards.

    Args:
        folder: see the module.
        dtype: of the weights, one of `published.DTYPES`; "" for bfloat16 on a GPU and float32
            elsewhere.
        device: torch device.

    Raises:
        ValueError: for an unknown dtype, or a device that there is not.
        CheckpointError: for another kind of model, for weights that are missing, left over or of
            another shape (they are named), and for damaged files.
        RefusedError: for weights that only pickle can read.
        MissingExtraError: without transformers.
    """
    folder, kind = Path(folder), weights_dtype(dtype, device)
    described = read_config(folder, (STOCK, CONVERTED))
    config = make_config("Qwen2_5_VLConfig", folder, described)
    weights, shards = read_weights(folder, _nested)
    manifest = read_manifest(folder, described, config.text_config.vocab_size)
    network = make_network(
        "Qwen2_5_VLForConditionalGeneration", config, weights, dtype=kind, folder=folder,
        described=described, what="Qwen2.5-VL",
    )  # fmt: skip
    said = [path for path in (folder / "config.json", folder / MANIFEST) if path.exists()]
    return VLMCheckpoint(network.to(device).eval(), manifest, folder, file_digest(*said, *shards))


def save_vlm(
    folder: str | Path, network: Any, manifest: Manifest, *, tokenizer: str, schema: str = ""
) -> Path:
    """Write a model as transformers would, with `Manifest` beside it; files appear whole.

    Args:
        folder: made when missing; other files in it are left alone.
        network: ``Qwen2_5_VLForConditionalGeneration``.
        manifest: what it was taught.
        tokenizer: JSON of the tokenizers library.
        schema: YAML that ``manifest.schema`` names, where it is no schema that comes along.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        new = Path(name)
        with quietly():
            network.save_pretrained(new)
        texts = {MANIFEST: json.dumps(asdict(manifest), indent=2) + "\n", TOKENIZER: tokenizer}
        if schema:
            texts[str(manifest.schema)] = schema
        for file, text in texts.items():
            (new / file).write_text(text, encoding="utf-8")
        for path in sorted(new.iterdir()):
            os.replace(path, folder / path.name)
    return folder


def _nested(key: str) -> str:
    """A key as transformers writes it, from either layout."""
    key = re.sub(r"^visual\.", "model.visual.", key)
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", key)
