"""LaViDa (arXiv 2505.16839): LLaDA or Dream that is shown pictures; prompts see only themselves.

The network is a stock decoder, the vision tower a stock SigLIP less its last layer. Because a
prompt does not see the answer, its keys are computed once and stay right; the answer sees all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.decoding.model import Regime
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.published import make_config, make_network, read_weights
from fastloop.policies.dlm import llada
from fastloop.policies.dlm.adapter import TextAdapter
from fastloop.policies.dlm.anyres import PINPOINTS, AnyRes
from fastloop.policies.dlm.pictured import Pictured, fill
from fastloop.policies.dlm.siglip import SO400M, Eyes
from fastloop.policies.vla.manifest import MANIFEST

__all__ = ["ADAPTER", "PLACE", "LavidaAdapter"]

PLACE = -200  # of a picture in its authors' prompts
TOWER = "model.vision_tower.vision_tower.vision_model."
BASES = {
    "llava_llada": replace(llada.ADAPTER, name="LaViDa", regime=Regime.PREFIX_LM),
    "llava_dream": TextAdapter(
        "LaViDa", ("llava_dream",), "Qwen2", Regime.PREFIX_LM, logit_shift=1, mask_id=151666
    ),
}
# How its checkpoints were trained; their configurations could say otherwise.
TRAINED = {
    "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu", "mm_spatial_pool_mode": "bilinear",
}  # fmt: skip


@dataclass(frozen=True)
class LavidaAdapter:
    """See `Adapter`. Published configurations do not say the vision tower's sizes, which are those
    of SigLIP so400m-patch14-384; a ``vision_config`` may."""

    model_types: tuple[str, ...] = tuple(BASES)

    def load(
        self, folder: Path, described: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> Pictured:
        """See `Adapter.load`."""
        base = BASES[described["model_type"]]
        try:
            pictures, vision = _vision(described)
            config = make_config(f"{base.network}Config", folder, base.config(described))
            eyes = Eyes(vision, config.hidden_size)
        except KeyError as error:
            raise CheckpointError(f"{folder}/config.json does not say {error}") from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json: {error}") from error
        manifest = base.manifest(folder, described, config.vocab_size)
        weights, shards = read_weights(folder, lambda key: _eyes_key(key) or base.key(key))
        seen = {key for key in weights if key.startswith("eyes.")}
        fill(eyes, {key.removeprefix("eyes."): weights[key] for key in seen}, folder)
        network = make_network(
            f"{base.network}ForCausalLM", config,
            {key: value for key, value in weights.items() if key not in seen},
            dtype=dtype, folder=folder, described=described, what=base.name,
        )  # fmt: skip
        said = [path for path in (folder / "config.json", folder / MANIFEST) if path.exists()]
        digest = file_digest(*said, *shards)
        spec = base.spec(manifest, vocab=config.vocab_size, digest=digest)
        try:
            return Pictured(network.to(device), spec, eyes=eyes, pictures=pictures, place=PLACE)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def _vision(described: Mapping[str, Any]) -> tuple[AnyRes, dict[str, Any]]:
    """How pictures are cut, and the fields of the vision tower."""
    other = {name: described[name] for name in TRAINED if described.get(name) is not None}
    if other := {name: value for name, value in other.items() if value != TRAINED[name]}:
        raise ValueError(f"{other} is not how LaViDa sees, expected {TRAINED}")
    vision = {**SO400M, **(described.get("vision_config") or {})}
    pinpoints = described.get("image_grid_pinpoints") or PINPOINTS
    cut = tuple((int(width), int(height)) for width, height in pinpoints)
    return AnyRes(vision["image_size"], vision["patch_size"], cut), vision


def _eyes_key(key: str) -> str:
    """What a weight is called in `Eyes`, after "eyes."; "" for one of the decoder."""
    if key.startswith(TOWER):
        return f"eyes.vision_tower.{key.removeprefix(TOWER)}"
    if key.startswith(("model.mm_projector.", "model.image_newline")):
        return f"eyes.{key.removeprefix('model.')}"
    return ""


ADAPTER = LavidaAdapter()
