"""LeRobot policy folders of type ``multi_task_dit``: its diffusion transformer behind CLIP.

The condition of an observation step is the state, the features of the cameras and those of the
instruction, in this order. The folder holds the text encoder's weights, and no tokenizer: the
instruction comes tokenized, as the observation ``observation.language.tokens``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.samplers import SamplerConfig
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
from fastloop.policies.checkpoints.lerobot_config import asked, diffusion_sampler, read_features
from fastloop.policies.checkpoints.lerobot_normalizer import normalizer_weights
from fastloop.policies.diffusion.clip import TOKENS, ClipConfig
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.spec import TensorSpec

__all__ = ["TYPE", "load"]

TYPE = "multi_task_dit"
ENVIRONMENT = "observation.environment_state"
# Releases of transformers differ in the text_model and vision_model in the middle.
NAMES = (
    (r"^noise_predictor\.", "model."),
    (r"^observation_encoder\.text_encoder\.text_encoder\.(text_model\.)?", "obs_encoder.text."),
    (r"^observation_encoder\.text_encoder\.projection\.", "obs_encoder.projection."),
    (r"^observation_encoder\.vision_encoder\.model\.(vision_model\.)?", "obs_encoder.cameras.0."),
    (r"^observation_encoder\.vision_encoders\.(\d+)\.model\.(vision_model\.)?",
     r"obs_encoder.cameras.\1."),
)  # fmt: skip
UNUSED = re.compile(r"\.position_ids$|^obs_encoder\.cameras\.\d+\.post_layernorm\.")
SOLVERS = {"euler": "flow", "rk4": "flow_rk4"}


def load(folder: str | Path) -> Checkpoint:
    """Read a policy folder.

    Raises:
        CheckpointError: when a file is missing or damaged, the weights are not what the
            configuration says, the statistics are missing, or something is not supported: encoders
            that are not OpenAI's CLIP, text padded on the left.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    inputs, action_dim = read_features(config, folder)
    cameras = [key for key, spec in inputs.items() if len(spec.shape) == 3]
    _check_supported(config, bool(cameras), folder)
    weights = to_float32(read_safetensors(folder / "model.safetensors"))
    state_dict = dict(_renamed(weights, folder))
    n_obs_steps = asked(config, "n_obs_steps", folder)
    clip = _clip(config, state_dict, inputs, cameras, folder)
    arch: dict[str, Any] = {
        "input_dim": action_dim,
        "global_cond_dim": _width(inputs, clip) * n_obs_steps,
        "reversed_flow": config.get("objective") == "flow_matching",
    }
    names = (
        "horizon", "hidden_dim", "num_layers", "num_heads", "dropout", "timestep_embed_dim",
        "use_rope", "rope_base", "use_positional_encoding",
    )  # fmt: skip
    arch |= {name: asked(config, name, folder) for name in names}
    if ENVIRONMENT in inputs and not _reads_environment(arch, inputs, n_obs_steps, state_dict):
        width = inputs.pop(ENVIRONMENT).shape[0]
        arch["global_cond_dim"] -= width * n_obs_steps

    state_dict |= normalizer_weights(config, {}, inputs, action_dim, folder)
    inputs[TOKENS] = TensorSpec((clip.max_tokens,), "int64", 0, clip.vocabulary - 1)
    for name, values in (("scale", torch.ones(1)), ("offset", torch.zeros(1))):
        state_dict[f"normalizer.params_dict.{TOKENS}.{name}"] = values
    check_network("dit", arch, state_dict, str(folder))
    check_encoder(lambda: build_encoder(inputs, n_obs_steps, clip=clip), state_dict, str(folder))
    check_normalizer(inputs, action_dim, state_dict, str(folder))
    return Checkpoint(
        kind="lerobot",
        network="dit",
        arch=arch,
        sampler=_sampler(config, folder),
        state_dict=state_dict,
        inputs=inputs,
        action_dim=action_dim,
        n_obs_steps=n_obs_steps,
        horizon=arch["horizon"],
        n_action_steps=asked(config, "n_action_steps", folder),
        clip=clip,
        source=str(folder),
        digest=file_digest(folder / "config.json", folder / "model.safetensors"),
    )


def _check_supported(config: Mapping[str, Any], sees: bool, folder: Path) -> None:
    for name in ("text_encoder_name", *["vision_encoder_name"] * sees):
        if not str(value := asked(config, name, folder)).startswith("openai/clip-"):
            raise CheckpointError(
                f"{folder}: {name} is {value!r}; only OpenAI's are supported (openai/clip-...), "
                "whose activation and head width are known"
            )
    if (side := config.get("tokenizer_padding_side", "right")) != "right":
        raise CheckpointError(
            f"{folder}: tokenizer_padding_side is {side!r}; only 'right' is supported, where what "
            "pads the text cannot change its features"
        )


def _renamed(
    weights: Mapping[str, torch.Tensor], folder: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in weights.items():
        name = key.replace("._orig_mod", "")
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(("model.", "obs_encoder.")):
            raise CheckpointError(
                f"{folder}: unexpected key {key!r}; expected noise_predictor.* and "
                "observation_encoder.{text_encoder,vision_encoder,vision_encoders}.*"
            )
        if not UNUSED.search(name):
            yield name, value


def _clip(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    inputs: Mapping[str, TensorSpec],
    cameras: list[str],
    folder: Path,
) -> ClipConfig:
    """The sizes of the encoders, which only their weights know."""

    def shape(name: str) -> tuple[int, ...]:
        if (key := f"obs_encoder.{name}") not in state_dict:
            raise CheckpointError(
                f"{folder}: model.safetensors has no {key}; expected the weights of the CLIP "
                "encoders beside those of the network"
            )
        return tuple(state_dict[key].shape)

    def layers(start: str) -> int:
        found = (re.match(rf"{start}\.encoder\.layers\.(\d+)\.", key) for key in state_dict)
        return 1 + max((int(match.group(1)) for match in found if match), default=-1)

    vocabulary, text_width = shape("text.embeddings.token_embedding.weight")
    sizes: dict[str, Any] = {
        "vocabulary": vocabulary,
        "text_width": text_width,
        "text_layers": layers(r"obs_encoder\.text"),
        "max_tokens": shape("text.embeddings.position_embedding.weight")[0],
        "text_dim": shape("projection.weight")[0],
    }
    if cameras:
        width, _, patch, _ = shape("cameras.0.embeddings.patch_embedding.weight")
        positions = shape("cameras.0.embeddings.position_embedding.weight")[0]
        resize, crop = _resize_and_crop(config, [inputs[key].shape for key in cameras])
        sizes |= {
            "vision_width": width,
            "vision_layers": layers(r"obs_encoder\.cameras\.0"),
            "patch": patch,
            "image_size": patch * math.isqrt(positions - 1),
            "resize_shape": resize,
            "crop_shape": crop,
            "separate_cameras": config.get("use_separate_rgb_encoder_per_camera", False),
        }
    return ClipConfig(**sizes)


def _resize_and_crop(
    config: Mapping[str, Any], shapes: list[tuple[int, ...]]
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """LeRobot does not crop where the crop is larger than one of the images."""
    resize, crop = config.get("image_resize_shape"), config.get("image_crop_shape")
    seen = [tuple(resize)] if resize else [shape[1:] for shape in shapes]
    if crop and any(crop[0] > height or crop[1] > width for height, width in seen):
        crop = None
    return (tuple(resize) if resize else None), (tuple(crop) if crop else None)


def _width(inputs: Mapping[str, TensorSpec], clip: ClipConfig) -> int:
    """Numbers of one observation step in the condition."""
    parts = (clip.vision_width if len(s.shape) == 3 else s.shape[0] for s in inputs.values())
    return sum(parts) + clip.text_dim


def _reads_environment(
    arch: Mapping[str, Any],
    inputs: Mapping[str, TensorSpec],
    n_obs_steps: int,
    state_dict: Mapping[str, torch.Tensor],
) -> bool:
    """Whether the condition has the environment's state, which no merged version of LeRobot reads.

    Only the weights say so: false where they are too narrow for it by just its width.
    """
    map_of_features = state_dict.get("model.transformer_blocks.0.adaLN_modulation.1.weight")
    if map_of_features is None:
        return True
    surplus = arch["timestep_embed_dim"] + arch["global_cond_dim"] - map_of_features.shape[1]
    return bool(surplus != inputs[ENVIRONMENT].shape[0] * n_obs_steps)


def _sampler(config: Mapping[str, Any], folder: Path) -> SamplerConfig:
    objective = asked(config, "objective", folder)
    if objective == "diffusion":
        return diffusion_sampler(config, folder)
    if objective != "flow_matching":
        raise CheckpointError(
            f"{folder}: unknown objective {objective!r}; choose one of diffusion, flow_matching"
        )
    method = config.get("integration_method", "euler")
    if method not in SOLVERS:
        raise CheckpointError(
            f"{folder}: unknown integration_method {method!r}; choose one of {', '.join(SOLVERS)}"
        )
    steps = asked(config, "num_integration_steps", folder)
    fields = {"kind": SOLVERS[method], "num_train_timesteps": 1, "num_inference_steps": steps}
    return sampler_config(fields, str(folder))
