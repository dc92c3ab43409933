"""Our own checkpoint folder: ``config.json`` describes, ``model.safetensors`` holds the weights.

Neither can carry code. The configuration names the digest of the weights, so a folder whose two
files are not of one save is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastloop.policies.checkpoints.checkpoint import Checkpoint, file_digest
from fastloop.policies.checkpoints.checks import (
    NETWORKS,
    check_encoder,
    check_network,
    check_normalizer,
    sampler_config,
    to_float32,
)
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors, write_safetensors
from fastloop.policies.checkpoints.spec_json import spec_from_json, spec_to_json
from fastloop.policies.diffusion.clip import ClipConfig
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.scene import SceneConfig
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.diffusion.vision import VisionConfig

__all__ = ["FORMAT", "VERSION", "load", "save"]

FORMAT = "fastloop.policy"
VERSION = 1
FIELDS = (
    "network", "arch", "spec", "sampler", "vision", "state", "relative_to", "ema", "training",
    "weights",
)  # fmt: skip


def save(folder: str | Path, checkpoint: Checkpoint, *, half: bool = False) -> Path:
    """Write a checkpoint folder; each file appears whole or not at all.

    Args:
        folder: made when missing; other files in it are left alone.
        checkpoint: what to write.
        half: store floating-point weights as float16; the normalizer stays float32.

    Returns:
        the folder.

    Raises:
        CheckpointError: when a weight does not fit half precision.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: _stored(key, value, half) for key, value in checkpoint.state_dict.items()}
    weights, config = folder / "model.safetensors", folder / "config.json"
    # Written in full beside the old files, then both are put in place at once.
    new_weights, new_config = folder / ".model.safetensors.new", folder / ".config.json.new"
    try:
        write_safetensors(new_weights, tensors, metadata={"format": "pt"})
        described = _to_json(checkpoint)
        described["weights"] = {
            "file": weights.name,
            "sha256": file_digest(new_weights),
            "dtype": "float16" if half else "float32",
        }
        new_config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        for path in (new_weights, new_config):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        new_weights.replace(weights)
        new_config.replace(config)
    finally:
        new_weights.unlink(missing_ok=True)
        new_config.unlink(missing_ok=True)
    return folder


def load(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder that `save` wrote.

    Raises:
        CheckpointError: when a file is missing or damaged, of a newer version, or the two are not
            of one save.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if (config.get("format"), config.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder}: expected {FORMAT} version {VERSION}, found {config.get('format')} version "
            f"{config.get('version')}"
        )
    if missing := [name for name in FIELDS if name not in config]:
        raise CheckpointError(f"{folder}/config.json has no {', '.join(missing)}")
    if config["network"] not in NETWORKS:
        raise CheckpointError(
            f"{folder}: unknown network {config['network']!r}; choose one of {', '.join(NETWORKS)}"
        )
    path = folder / "model.safetensors"
    state_dict = to_float32(read_safetensors(path))
    digest = file_digest(path)
    if digest != config["weights"].get("sha256"):
        raise CheckpointError(
            f"{folder}: config.json belongs to weights {config['weights'].get('sha256')}, "
            f"model.safetensors is {digest}: damaged, or the two files are of different saves"
        )
    spec = spec_from_json(config["spec"]) | {
        "vision": _vision_from_json(config["vision"]),
        "state": StateConfig(**config["state"]) if config["state"] else None,
        "relative_to": config["relative_to"],
        # Not in folders of before they were known.
        "clip": _clip_from_json(config.get("clip")),
        "scene": SceneConfig(**config["scene"]) if config.get("scene") else None,
        "cumulative": config.get("cumulative", False),
    }
    check_network(config["network"], config["arch"], state_dict, str(folder))
    check_encoder(
        lambda: build_encoder(
            spec["inputs"],
            spec["n_obs_steps"],
            vision=spec["vision"],
            state=spec["state"],
            scene=spec["scene"],
            clip=spec["clip"],
        ),
        state_dict,
        str(folder),
    )
    check_normalizer(spec["inputs"], spec["action_dim"], state_dict, str(folder))
    return Checkpoint(
        kind="fastloop",
        network=config["network"],
        arch=config["arch"],
        sampler=sampler_config(config["sampler"], str(folder)),
        state_dict=state_dict,
        **spec,
        ema=config["ema"],
        training=config["training"],
        source=str(folder),
        digest=digest,
    )


def _stored(key: str, value: torch.Tensor, half: bool) -> torch.Tensor:
    if not half or not value.is_floating_point() or key.startswith("normalizer."):
        return value.contiguous().clone()
    small = value.half()
    if (small.isinf() & ~value.isinf()).any():
        raise CheckpointError(f"{key} holds values beyond half precision; save with half=False")
    return small.contiguous()


def _to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "network": checkpoint.network,
        "arch": dict(checkpoint.arch),
        "spec": spec_to_json(checkpoint, checkpoint.action_dim),
        "sampler": dataclasses.asdict(checkpoint.sampler),
        "vision": dataclasses.asdict(checkpoint.vision) if checkpoint.vision else None,
        "state": dataclasses.asdict(checkpoint.state) if checkpoint.state else None,
        "scene": dataclasses.asdict(checkpoint.scene) if checkpoint.scene else None,
        "clip": dataclasses.asdict(checkpoint.clip) if checkpoint.clip else None,
        "relative_to": checkpoint.relative_to,
        "cumulative": checkpoint.cumulative,
        "ema": checkpoint.ema,
        "training": dict(checkpoint.training),
    }


def _vision_from_json(vision: Mapping[str, Any] | None) -> VisionConfig | None:
    if vision is None:
        return None
    crop = vision["crop_shape"]
    return VisionConfig(**{**vision, "crop_shape": tuple(crop) if crop else None})


def _clip_from_json(clip: Mapping[str, Any] | None) -> ClipConfig | None:
    if clip is None:
        return None
    sizes = {name: clip[name] for name in ("resize_shape", "crop_shape")}
    return ClipConfig(**{**clip, **{k: tuple(v) if v else None for k, v in sizes.items()}})
