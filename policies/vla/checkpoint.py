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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.extras import require
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.files import read_json, read_safetensors
from fastloop.policies.vla.manifest import CONVERTED, MANIFEST, STOCK, Manifest, read_manifest

__all__ = ["VLMCheckpoint", "is_vlm", "load_vlm", "save_vlm"]

TOKENIZER = "tokenizer.json"
DTYPES = ("float32", "bfloat16", "float16", "float64")
DEEPEST = 1000  # layers
# Fields of a configuration that make transformers load something, besides those that begin in "_".
LOADING = ("attn_implementation", "auto_map", "transformers_weights")


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
            mask_id=told.mask_id, stop_id=told.stop_id, null_id=told.null_id, logit_shift=1,
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
        dtype: of the weights, one of `DTYPES`; "" for bfloat16 on a GPU and float32 elsewhere.
        device: torch device.

    Raises:
        ValueError: for an unknown dtype, or a device that there is not.
        CheckpointError: for another kind of model, for weights that are missing, left over or of
            another shape (they are named), and for damaged files.
        RefusedError: for weights that only pickle can read.
        MissingExtraError: without transformers.
    """
    folder = Path(folder)
    try:
        on = torch.empty(0, device=device).device.type
    except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
        raise ValueError(f"the model cannot be put on device {device!r}: {error}") from error
    dtype = dtype or ("bfloat16" if on == "cuda" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; have: {', '.join(DTYPES)}")
    described = read_json(folder / "config.json")
    if described.get("model_type") not in (STOCK, CONVERTED):
        raise CheckpointError(
            f"{folder} holds a model of type {described.get('model_type')!r}; expected one of "
            f"{STOCK}, {CONVERTED}"
        )
    if "quantization_config" in described:
        raise CheckpointError(
            f"{folder} holds quantized weights ({described['quantization_config']}); expected the "
            "original ones"
        )
    config = _config(folder, described)
    shards = _weight_files(folder)
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        weights |= {_nested(key): value for key, value in read_safetensors(shard).items()}
    _check_weights(folder, described, config, weights)
    manifest = read_manifest(folder, described, config.text_config.vocab_size)
    network = require("transformers", extra="vla").Qwen2_5_VLForConditionalGeneration
    with _quietly():
        network = network.from_pretrained(
            None, config=config, state_dict=weights, dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
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
        with _quietly():
            network.save_pretrained(new)
        texts = {MANIFEST: json.dumps(asdict(manifest), indent=2) + "\n", TOKENIZER: tokenizer}
        if schema:
            texts[str(manifest.schema)] = schema
        for file, text in texts.items():
            (new / file).write_text(text, encoding="utf-8")
        for path in sorted(new.iterdir()):
            os.replace(path, folder / path.name)
    return folder


def _config(folder: Path, described: Mapping[str, Any]) -> Any:
    """The configuration, without what would make transformers load or run something."""
    transformers = require("transformers", extra="vla")
    layers = [
        part.get(key, 0)
        for part in (described, described.get("text_config"), described.get("vision_config"))
        if isinstance(part, dict)
        for key in ("num_hidden_layers", "depth")
    ]
    if not all(isinstance(count, int) and 0 <= count <= DEEPEST for count in layers):
        raise CheckpointError(f"{folder}/config.json: {layers} layers, at most {DEEPEST} are read")
    try:
        config = transformers.Qwen2_5_VLConfig.from_dict(_plain(described))
        config._attn_implementation = "sdpa"  # of all its parts; reads boolean masks
        return config
    except Exception as error:  # its fields check themselves, with exceptions of several kinds
        raise CheckpointError(f"{folder}/config.json is malformed: {error}") from error


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in part.items()
        if not key.startswith("_") and key not in LOADING
    }


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} names no shards, expected a weight_map")
        shards = sorted(set(map(str, named.values())))
        if outside := [name for name in shards if Path(name).name != name]:
            raise RefusedError(f"{index} names files outside of its folder: {outside}")
        return [folder / name for name in shards]
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise RefusedError(
            f"{folder} holds its weights in {', '.join(pickled[:3])}, which only pickle reads, and "
            "a pickle can run anything: convert it to model.safetensors where you trust it"
        )
    raise CheckpointError(f"{folder} holds no weights, expected model.safetensors or its index")


def _nested(key: str) -> str:
    """A key as transformers writes it, from either layout."""
    key = re.sub(r"^visual\.", "model.visual.", key)
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", key)


def _check_weights(
    folder: Path, described: Mapping[str, Any], config: Any, weights: Mapping[str, torch.Tensor]
) -> None:
    network = require("transformers", extra="vla").Qwen2_5_VLForConditionalGeneration
    try:
        with torch.device("meta"):
            wanted = {
                key: tuple(value.shape) for key, value in network(config).state_dict().items()
            }
    except Exception as error:  # sizes that do not fit each other
        raise CheckpointError(f"{folder}/config.json describes no network: {error}") from error
    if config.tie_word_embeddings and "lm_head.weight" not in weights:
        del wanted["lm_head.weight"]
    held = {key: tuple(value.shape) for key, value in weights.items()}
    faults = [
        f"{key}: configuration {wanted.get(key, 'has none')}, weights {held.get(key, 'have none')}"
        for key in sorted(wanted.keys() | held.keys())
        if wanted.get(key) != held.get(key)
    ]
    if faults:
        more = f"\n  and {len(faults) - 12} more" if len(faults) > 12 else ""
        own = described.get("auto_map")
        classes = f" (it names classes of its own, {own}, which are not run)" if own else ""
        raise CheckpointError(
            f"{folder}: {len(faults)} weights are not those of a Qwen2.5-VL of this "
            f"configuration{classes}:\n  " + "\n  ".join(faults[:12]) + more
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, which transformers would draw."""
    logging = require("transformers.utils.logging", extra="vla")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
