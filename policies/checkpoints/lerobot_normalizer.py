"""The normalizer of a LeRobot policy folder, from the statistics of its training data.

Where they are depends on the release: at first in buffers of the model
(``normalize_inputs.buffer_observation_state.min``), since then in ``policy_preprocessor.json`` and
``policy_postprocessor.json`` with a safetensors file each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastloop.policies.checkpoints.checks import to_float32
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors
from fastloop.policies.checkpoints.lerobot_config import ACTION
from fastloop.policies.spec import TensorSpec

__all__ = ["BUFFERS", "normalizer_weights"]

BUFFERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
# What each mode maps to -1 and 1, or to 0 and 1 for mean and deviation.
LIMITS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
MODES = (*LIMITS, "MEAN_STD", "IDENTITY")
EPSILON = 1e-8

Stats = Mapping[str, Mapping[str, torch.Tensor]]


def normalizer_weights(
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    inputs: Mapping[str, TensorSpec],
    action_dim: int,
    folder: Path,
) -> dict[str, torch.Tensor]:
    """The ``normalizer.*`` entries of a `DiffusionModel` for every input and the actions.

    Args:
        config: ``config.json``.
        weights: of the model, whose buffers hold the statistics of old folders.
        inputs: observation key to its spec.
        action_dim: A.
        folder: where the files are.

    Raises:
        CheckpointError: when statistics are missing or a mode is unknown.
    """
    stats, modes = _statistics(config, weights, inputs, folder)
    numbers: dict[str, torch.Tensor] = {}
    for key, spec in (*inputs.items(), (ACTION, TensorSpec((action_dim,)))):
        numbers |= _normalizer(key, stats, modes[key], spec.shape[0], folder)
    return numbers


def _statistics(
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    inputs: Mapping[str, TensorSpec],
    folder: Path,
) -> tuple[Stats, dict[str, str]]:
    """What is known of every feature, and how each is normalized."""
    keys = (*inputs, ACTION)
    modes = _modes(config, config.get("normalization_mapping"), keys)
    stats: dict[str, dict[str, torch.Tensor]] = {key: {} for key in keys}
    if not (folder / "policy_preprocessor.json").exists():
        for key in keys:
            place = "unnormalize_outputs" if key == ACTION else "normalize_inputs"
            start = f"{place}.buffer_{key.replace('.', '_')}."
            found = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            stats[key] = {name: value.flatten() for name, value in found.items()}
        return stats, modes
    for side, step, wanted in (
        ("pre", "normalizer_processor", list(inputs)),
        ("post", "unnormalizer_processor", [ACTION]),
    ):
        numbers, mapping = _processor(folder / f"policy_{side}processor.json", step)
        modes |= _modes(config, mapping, wanted)
        for key in wanted:
            start = f"{key}."
            found = {k.removeprefix(start): v for k, v in numbers.items() if k.startswith(start)}
            stats[key] = {name: value.flatten() for name, value in found.items()}
    return stats, modes


def _modes(config: Mapping[str, Any], mapping: Any, keys: Any) -> dict[str, str]:
    """The mode of each feature: by kind since 2025, by name before."""
    if mapping is None:
        named = config.get("input_normalization_modes", {}) | config.get(
            "output_normalization_modes", {}
        )
        return {key: named.get(key, "IDENTITY").upper() for key in keys}

    def kind(key: str) -> str:
        if key.startswith("observation.image"):
            return "VISUAL"
        return {ACTION: "ACTION", "observation.environment_state": "ENV"}.get(key, "STATE")

    return {key: mapping.get(kind(key), "IDENTITY") for key in keys}


def _processor(path: Path, step_name: str) -> tuple[dict[str, torch.Tensor], Any]:
    steps = read_json(path).get("steps", [])
    for step in steps:
        if step.get("registry_name") == step_name:
            file = step.get("state_file")
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(
                    f"{path}: {step_name} keeps its statistics in {file!r}, expected a file name"
                )
            return to_float32(read_safetensors(path.parent / file)), step.get("config", {}).get(
                "norm_map"
            )
    found = ", ".join(str(step.get("registry_name")) for step in steps) or "none"
    raise CheckpointError(f"{path} has no {step_name}, so no normalizer; its steps are {found}")


def _linear(key: str, stats: Stats, mode: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of a mode: y = x * scale + offset."""
    if mode not in MODES:
        raise CheckpointError(
            f"{folder}: {key} is normalized by {mode!r}; choose one of {', '.join(MODES)}"
        )
    low_name, high_name = LIMITS.get(mode, ("mean", "std"))
    known = stats[key]
    if not {low_name, high_name} <= known.keys():
        raise CheckpointError(
            f"{folder} has no normalizer for {key!r}: {mode} needs {low_name} and {high_name}, "
            f"found {', '.join(known) or 'nothing'}. Without it actions would be in the network's "
            "units, not the robot's"
        )
    low, high = known[low_name], known[high_name]
    if mode == "MEAN_STD":
        scale = 1 / (high + EPSILON)
        return scale, -low * scale
    # A constant action comes back as it was; a constant observation keeps a scale of 1, since the
    # tiny range that LeRobot divides by would drown it in rounding.
    constant = torch.tensor(EPSILON if key == ACTION else 2.0)
    scale = 2 / torch.where(high == low, constant, high - low)
    return scale, -1 - scale * low


def _normalizer(
    key: str, stats: Stats, mode: str, width: int, folder: Path
) -> dict[str, torch.Tensor]:
    if mode == "IDENTITY":
        return _field(key, torch.ones(width), torch.zeros(width))
    scale, offset = _linear(key, stats, mode, folder)
    numbers = _field(key, scale, offset)
    for name in ("min", "max", "mean", "std"):
        if name in stats[key]:
            numbers[f"normalizer.params_dict.{key}.input_stats.{name}"] = stats[key][name]
    return numbers


def _field(key: str, scale: torch.Tensor, offset: torch.Tensor) -> dict[str, torch.Tensor]:
    start = f"normalizer.params_dict.{key}"
    return {f"{start}.scale": scale, f"{start}.offset": offset}
