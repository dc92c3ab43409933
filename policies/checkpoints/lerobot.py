"""LeRobot policy folders of its diffusion policy: ``config.json`` beside ``model.safetensors``.

Its U-Net is that of Diffusion Policy under other names.
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
    to_float32,
)
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors
from fastloop.policies.checkpoints.lerobot_config import asked, diffusion_sampler, read_features
from fastloop.policies.checkpoints.lerobot_normalizer import BUFFERS, normalizer_weights
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.vision import VisionConfig

__all__ = ["load"]

UNET = (
    (r"\.conv1\.block\.", ".blocks.0.block."),
    (r"\.conv2\.block\.", ".blocks.1.block."),
    (r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv."),
)


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
        raise CheckpointError(
            f"{folder}: a LeRobot policy of type {kind!r}, expected 'diffusion' or 'multi_task_dit'"
        )
    weights = {
        key.replace("._orig_mod", ""): value
        for key, value in to_float32(read_safetensors(folder / "model.safetensors")).items()
    }
    inputs, action_dim = read_features(config, folder)
    cameras = [key for key, spec in inputs.items() if len(spec.shape) == 3]
    vision = _vision(config, folder) if cameras else None
    state_dict = dict(_renamed(weights, cameras, folder))
    if vision:  # LeRobot's softmax has no temperature
        state_dict |= {f"{name}.temperature": torch.ones(1) for name in _pools(state_dict)}
    state_dict |= normalizer_weights(config, weights, inputs, action_dim, folder)

    features = sum(
        vision.feature_dim if vision and key in cameras else spec.shape[0]
        for key, spec in inputs.items()
    )
    n_obs_steps = asked(config, "n_obs_steps", folder)
    arch = {
        "input_dim": action_dim,
        "global_cond_dim": features * n_obs_steps,
        "diffusion_step_embed_dim": asked(config, "diffusion_step_embed_dim", folder),
        "down_dims": list(asked(config, "down_dims", folder)),
        "kernel_size": asked(config, "kernel_size", folder),
        "n_groups": asked(config, "n_groups", folder),
        "cond_predict_scale": asked(config, "use_film_scale_modulation", folder),
    }
    check_network("unet", arch, state_dict, str(folder))
    check_encoder(
        lambda: build_encoder(inputs, n_obs_steps, vision=vision), state_dict, str(folder)
    )
    check_normalizer(inputs, action_dim, state_dict, str(folder))

    return Checkpoint(
        kind="lerobot",
        network="unet",
        arch=arch,
        sampler=diffusion_sampler(config, folder),
        state_dict=state_dict,
        inputs=inputs,
        action_dim=action_dim,
        n_obs_steps=n_obs_steps,
        horizon=asked(config, "horizon", folder),
        n_action_steps=asked(config, "n_action_steps", folder),
        vision=vision,
        source=str(folder),
        digest=file_digest(folder / "config.json", folder / "model.safetensors"),
    )


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
    points = asked(config, "spatial_softmax_num_keypoints", folder)
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
