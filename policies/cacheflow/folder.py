"""Folders of CacheFlow policies: weights, table, and what they are for; none can carry code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastloop.policies.cacheflow.cache import load_table, save_table
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors, write_safetensors
from fastloop.policies.checkpoints.spec_json import spec_from_json, spec_to_json
from fastloop.policies.spec import PolicySpec

__all__ = ["describe_cacheflow", "is_cacheflow", "load_cacheflow", "save_cacheflow"]

FORMAT, VERSION = "fastloop.cacheflow", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FIELDS = ("model", "shapes", "spec", "relative_to", "samples", "alarm", "weights")


def is_cacheflow(path: str | Path) -> bool:
    """Whether this is a folder that `save_cacheflow` wrote.

    Raises:
        CheckpointError: when its ``config.json`` is damaged.
    """
    config = Path(path) / CONFIG
    return config.is_file() and read_json(config).get("format") == FORMAT


def save_cacheflow(
    folder: str | Path, policy: CacheFlowPolicy, training: Mapping[str, Any] | None = None
) -> Path:
    """Write a policy with its table; each file appears whole or not at all.

    Args:
        folder: made when missing; other files in it are left alone.
        policy: to keep.
        training: what is known of how it was made, as plain values.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = policy.cacheflow.model
    weights, config = folder / f".{WEIGHTS}.new", folder / f".{CONFIG}.new"
    tensors = {name: part.cpu().contiguous() for name, part in model.state_dict().items()}
    write_safetensors(weights, tensors)
    described = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(model.config),
        "shapes": model.shapes,
        "spec": spec_to_json(policy.spec, policy.spec.action.dim),
        "relative_to": policy.relative_to,
        "samples": policy.samples,
        "alarm": policy.alarm,
        "training": dict(training or {}),
        "weights": {"file": WEIGHTS, "sha256": file_digest(weights)},
    }
    config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_table(folder, policy.cacheflow.table, model.digest())
    os.replace(weights, folder / WEIGHTS)
    os.replace(config, folder / CONFIG)
    return folder


def load_cacheflow(folder: str | Path, *, device: str = "cpu") -> CacheFlowPolicy:
    """Read a policy that `save_cacheflow` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, files are of different saves, or the table is
            empty or of another flow.
    """
    folder = Path(folder)
    told = read_json(folder / CONFIG)
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder}: expected {FORMAT} version {VERSION}, found {told.get('format')} version "
            f"{told.get('version')}"
        )
    if missing := [name for name in FIELDS if name not in told]:
        raise CheckpointError(f"{folder / CONFIG} has no {', '.join(missing)}")
    tensors, digest = read_safetensors(folder / WEIGHTS), file_digest(folder / WEIGHTS)
    try:
        if digest != told["weights"].get("sha256"):
            raise CheckpointError(
                f"{folder}: {CONFIG} belongs to weights {told['weights'].get('sha256')}, {WEIGHTS} "
                f"is {digest}: damaged, or the two files are of different saves"
            )
        shapes = told["shapes"]
        model = CacheFlowModel(
            CacheFlowConfig(**told["model"]), tuple(shapes["history"]), tuple(shapes["future"]),
            command=shapes["command"], neighbors=shapes["neighbors"],
        )  # fmt: skip
        model.load_state_dict(tensors)
        spec = spec_from_json(told["spec"])
        del spec["action_dim"]
        policy = CacheFlowPolicy(
            PolicySpec(**spec),
            CacheFlow(model, load_table(folder, model.digest())),
            relative_to=told["relative_to"], samples=told["samples"], alarm=told["alarm"],
            digest=digest,
        )  # fmt: skip
    except CheckpointError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no CacheFlow policy: {error}") from error
    try:
        return policy if device == "cpu" else policy.to(device)
    except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
        raise ValueError(f"the policy cannot be put on device {device!r}: {error}") from error


def describe_cacheflow(folder: str | Path, *, keys: bool = False) -> dict[str, Any]:
    """What a folder holds, as plain values for printing.

    Args:
        folder: that `save_cacheflow` wrote.
        keys: also list every tensor with its shape.

    Raises:
        CheckpointError: as `load_cacheflow`.
    """
    policy = load_cacheflow(folder)
    told, tensors = read_json(Path(folder) / CONFIG), policy.cacheflow.model.state_dict()
    described = {
        "kind": FORMAT,
        "digest": policy.digest,
        "parameters": sum(part.numel() for part in policy.cacheflow.model.parameters()),
        "futures": len(policy.cacheflow.table.futures),
        **{name: told[name] for name in ("model", "shapes", "relative_to", "samples", "alarm")},
        "inputs": {
            key: f"{spec.dtype} {list(spec.shape)}" for key, spec in policy.spec.inputs.items()
        },
        "action": asdict(policy.spec.action),
        "control_hz": policy.spec.control_hz,
        "n_obs_steps": policy.spec.n_obs_steps,
        "horizon": policy.spec.horizon,
        "n_action_steps": policy.spec.n_action_steps,
        "training": told["training"],
    }
    if keys:
        described["keys"] = {name: list(part.shape) for name, part in tensors.items()}
    return described
