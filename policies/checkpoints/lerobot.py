"""LeRobot policy folders of its diffusion policy: ``config.json`` beside ``model.safetensors``.

Its U-Net is that of Diffusion Policy under other names. Where the statistics are depends on the
release: at first in buffers of the model (``normalize_inputs.buffer_observation_state.min``), since
then in ``policy_preprocessor.json`` and ``policy_postprocessor.json`` with a safetensors file each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastloop.policies.checkpoints.cameras import from_lerobot
from fastloop.policies.checkpoints.checkpoint import Checkpoint, file_digest
from fastloop.policies.checkpoints.checks import (
    check_encoder,
    check_network,
    check_normalizer,
    sampler_config,
    to_float32,
)
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.spec import TensorSpec

__all__ = ["load"]

ACTION = "action"
UNET = (
    (r"\.conv1\.block\.", ".blocks.0.block."),
    (r"\.conv2\.block\.", ".blocks.1.block."),
    (r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv."),
)
BUFFERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
# What each mode maps to -1 and 1, or to 0 and 1 for mean and deviation.
LIMITS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
MODES = (*LIMITS, "MEAN_STD", "IDENTITY")
EPSILON = 1e-8

Stats = Mapping[str, Mapping[str, torch.Tensor]]


def load(folder: str | Path) -> Checkpoint:
    """Read a policy folder, old or new.

    Raises:
        CheckpointError: when a file is missing or damaged, the policy is no diffusion policy, the
            weights are not what the configuration says, or the statistics are missing.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    kind = config.get("type", "diffusion" if "down_dims" in config else None)
    if kind != "diffusion":
        raise CheckpointError(f"{folder}: a LeRobot policy of type {kind!r}, expected 'diffusion'")
    weights = {
        key.replace("._orig_mod", ""): value
        for key, value in to_float32(read_safetensors(folder / "model.safetensors")).items()
    }
    inputs, action_dim = _features(config, folder)
    cameras = [key for key, spec in inputs.items() if len(spec.shape) == 3]
    vision = _vision(config, folder) if cameras else None
    state_dict = dict(_renamed(weights, cameras, folder))
    if vision:  # LeRobot's softmax has no temperature
        state_dict |= {f"{name}.temperature": torch.ones(1) for name in _pools(state_dict)}
    stats, modes = _statistics(config, weights, inputs, folder)
    for key, spec in (*inputs.items(), (ACTION, TensorSpec((action_dim,)))):
        state_dict |= _normalizer(key, stats, modes[key], spec.shape[0], folder)

    features = sum(
        vision.feature_dim if vision and key in cameras else spec.shape[0]
        for key, spec in inputs.items()
    )
    n_obs_steps = _asked(config, "n_obs_steps", folder)
    arch = {
        "input_dim": action_dim,
        "global_cond_dim": features * n_obs_steps,
        "diffusion_step_embed_dim": _asked(config, "diffusion_step_embed_dim", folder),
        "down_dims": list(_asked(config, "down_dims", folder)),
        "kernel_size": _asked(config, "kernel_size", folder),
        "n_groups": _asked(config, "n_groups", folder),
        "cond_predict_scale": _asked(config, "use_film_scale_modulation", folder),
    }
    check_network("unet", arch, state_dict, str(folder))
    check_encoder(
        lambda: build_encoder(inputs, n_obs_steps, vision=vision), state_dict, str(folder)
    )
    check_normalizer(inputs, action_dim, state_dict, str(folder))

    trained = _asked(config, "num_train_timesteps", folder)
    names = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")
    sampler = {name: _asked(config, name, folder) for name in (*names, "clip_sample_range")}
    return Checkpoint(
        kind="lerobot",
        network="unet",
        arch=arch,
        sampler=sampler_config(
            {
                "kind": str(config.get("noise_scheduler_type", "DDPM")).lower(),
                "num_train_timesteps": trained,
                "num_inference_steps": config.get("num_inference_steps") or trained,
                **sampler,
            },
            str(folder),
        ),
        state_dict=state_dict,
        inputs=inputs,
        action_dim=action_dim,
        n_obs_steps=n_obs_steps,
        horizon=_asked(config, "horizon", folder),
        n_action_steps=_asked(config, "n_action_steps", folder),
        vision=vision,
        source=str(folder),
        digest=file_digest(folder / "config.json", folder / "model.safetensors"),
    )


def _asked(config: Mapping[str, Any], name: str, folder: Path) -> Any:
    if name not in config:
        raise CheckpointError(
            f"{folder}/config.json has no {name!r}; it has {', '.join(sorted(config))}"
        )
    return config[name]


def _features(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, TensorSpec], int]:
    """Observation specs in the order of the condition (state, cameras, environment) and A."""
    if "input_features" in config:
        shapes = {k: tuple(v["shape"]) for k, v in config["input_features"].items()}
        outputs = {k: tuple(v["shape"]) for k, v in config.get("output_features", {}).items()}
    else:
        shapes = {k: tuple(v) for k, v in _asked(config, "input_shapes", folder).items()}
        outputs = {k: tuple(v) for k, v in _asked(config, "output_shapes", folder).items()}
    if "observation.state" not in shapes or ACTION not in outputs:
        raise CheckpointError(
            f"{folder}: expected the input observation.state and the output action, found inputs "
            f"{', '.join(shapes)} and outputs {', '.join(outputs)}"
        )
    cameras = [key for key in shapes if key.startswith("observation.image")]
    order = ["observation.state", *cameras]
    if "observation.environment_state" in shapes:
        order.append("observation.environment_state")
    inputs = {
        key: TensorSpec(shapes[key], "uint8", 0, 255) if key in cameras else TensorSpec(shapes[key])
        for key in order
    }
    return inputs, outputs[ACTION][0]


def _renamed(
    weights: Mapping[str, torch.Tensor], cameras: list[str], folder: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in weights.items():
        if key.startswith("diffusion.unet."):
            name = key.removeprefix("diffusion.unet.")
            for pattern, replacement in UNET:
                name = re.sub(pattern, replacement, name)
            yield f"model.{name}", value
        elif key.startswith("diffusion.rgb_encoder."):
            for name in from_lerobot(key, cameras):
                yield name, value
        elif not key.startswith(BUFFERS):
            raise CheckpointError(
                f"{folder}: unexpected key {key!r}; expected diffusion.unet.*, "
                f"diffusion.rgb_encoder.* and {', '.join(b + '*' for b in BUFFERS)}"
            )


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


def _vision(config: Mapping[str, Any], folder: Path) -> VisionConfig:
    for name, needed in (
        ("vision_backbone", "resnet18"),
        ("use_group_norm", True),
        ("resize_shape", None),
    ):
        if (value := config.get(name)) != needed:
            raise CheckpointError(
                f"{folder}: {name} is {value!r}; only {needed!r} is supported for images"
            )
    points = _asked(config, "spatial_softmax_num_keypoints", folder)
    crop = config.get("crop_shape")
    return VisionConfig(
        crop_shape=tuple(crop) if crop else None,
        num_keypoints=points,
        feature_dim=2 * points,
        final_relu=True,
    )


def _pools(state_dict: Mapping[str, torch.Tensor]) -> set[str]:
    end = ".pool.nets.weight"
    return {key.removesuffix(".nets.weight") for key in state_dict if key.endswith(end)}
