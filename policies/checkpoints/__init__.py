"""Checkpoints of three projects as one `Checkpoint`, read without running anything from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastloop.policies.checkpoints import diffusion_policy, lerobot, lerobot_dit, native
from fastloop.policies.checkpoints.checkpoint import Checkpoint
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.lags import check_lags

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "RefusedError",
    "convert",
    "describe",
    "load_checkpoint",
]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, whichever of the known formats it is in.

    Args:
        path: our folder, a LeRobot policy folder, or a ``.ckpt`` of diffusion_policy.

    Raises:
        CheckpointError: saying what was expected and what was found.
        RefusedError: when the file tries to import, call or evaluate something.
    """
    read = _reader(Path(path))
    try:
        return read(path)
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A value of the wrong kind somewhere in the file's configuration.
        raise CheckpointError(
            f"{path}: the configuration is malformed ({type(error).__name__}: {error})"
        ) from error


def _reader(path: Path) -> Callable[[str | Path], Checkpoint]:
    expected = (
        "expected a folder with config.json and model.safetensors (fastloop's own, or a LeRobot "
        "policy of type diffusion or multi_task_dit), or a .ckpt of diffusion_policy"
    )
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; {expected}")
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise CheckpointError(f"{path} is one file of a checkpoint folder: give the folder")
        return diffusion_policy.load
    if not (path / "config.json").exists():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise CheckpointError(f"{path} holds {found}; {expected}")
    config = read_json(path / "config.json")
    if "format" in config:
        return native.load
    if config.get("type") == lerobot_dit.TYPE:
        return lerobot_dit.load
    return lerobot.load


def describe(path: str | Path, *, keys: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, as plain values for printing.

    Args:
        path: as for `load_checkpoint`.
        keys: also list every entry of the state dict with its shape.
    """
    checkpoint = load_checkpoint(path)
    start, end = "normalizer.params_dict.", ".scale"
    fields = {
        key.removeprefix(start).removesuffix(end): len(value)
        for key, value in checkpoint.state_dict.items()
        if key.startswith(start) and key.endswith(end)
    }
    described = {
        "kind": checkpoint.kind,
        "source": checkpoint.source,
        "digest": checkpoint.digest,
        "network": checkpoint.network,
        "arch": dict(checkpoint.arch),
        "parameters": checkpoint.parameters,
        "inputs": {
            key: f"{spec.dtype} {list(spec.shape)}" for key, spec in checkpoint.inputs.items()
        },
        "action_dim": checkpoint.action_dim,
        "action": dataclasses.asdict(checkpoint.action) if checkpoint.action else None,
        "control_hz": checkpoint.control_hz,
        "n_obs_steps": checkpoint.n_obs_steps,
        "horizon": checkpoint.horizon,
        "n_action_steps": checkpoint.n_action_steps,
        "lags": list(check_lags(checkpoint.lags, checkpoint.n_obs_steps)),
        "sampler": dataclasses.asdict(checkpoint.sampler),
        "vision": dataclasses.asdict(checkpoint.vision) if checkpoint.vision else None,
        "state": dataclasses.asdict(checkpoint.state) if checkpoint.state else None,
        "scene": dataclasses.asdict(checkpoint.scene) if checkpoint.scene else None,
        "clip": dataclasses.asdict(checkpoint.clip) if checkpoint.clip else None,
        "relative_to": checkpoint.relative_to,
        "cumulative": checkpoint.cumulative,
        "normalizer": fields,
        "ema": checkpoint.ema,
        "training": dict(checkpoint.training),
    }
    if keys:
        described["keys"] = {key: list(value.shape) for key, value in checkpoint.state_dict.items()}
    return described


def convert(path: str | Path, out: str | Path, *, half: bool = False) -> Path:
    """Rewrite any known checkpoint as our own folder, naming where it came from.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    origin = {"kind": checkpoint.kind, "source": Path(path).name, "sha256": checkpoint.digest}
    training = {**checkpoint.training, "converted_from": origin}
    return native.save(out, dataclasses.replace(checkpoint, training=training), half=half)
