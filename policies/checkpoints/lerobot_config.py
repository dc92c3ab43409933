"""What the ``config.json`` of every LeRobot diffusion policy says in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.checkpoints.checks import sampler_config
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.spec import TensorSpec

__all__ = ["ACTION", "asked", "diffusion_sampler", "read_features"]

ACTION = "action"


def asked(config: Mapping[str, Any], name: str, folder: Path) -> Any:
    """A value that the configuration must have.

    Raises:
        CheckpointError: when it has not, listing what it has.
    """
    if name not in config:
        raise CheckpointError(
            f"{folder}/config.json has no {name!r}; it has {', '.join(sorted(config))}"
        )
    return config[name]


def read_features(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, TensorSpec], int]:
    """Observation specs in the order of the condition (state, cameras, environment) and A.

    Raises:
        CheckpointError: when there is no state to read or no action to plan.
    """
    if "input_features" in config:
        shapes = {k: tuple(v["shape"]) for k, v in config["input_features"].items()}
        outputs = {k: tuple(v["shape"]) for k, v in config.get("output_features", {}).items()}
    else:
        shapes = {k: tuple(v) for k, v in asked(config, "input_shapes", folder).items()}
        outputs = {k: tuple(v) for k, v in asked(config, "output_shapes", folder).items()}
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


def diffusion_sampler(config: Mapping[str, Any], folder: Path) -> SamplerConfig:
    """The noise schedule and the reverse process.

    Raises:
        CheckpointError: when a field is missing or no sampler can be made of them.
    """
    trained = asked(config, "num_train_timesteps", folder)
    names = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")
    return sampler_config(
        {
            "kind": str(config.get("noise_scheduler_type", "DDPM")).lower(),
            "num_train_timesteps": trained,
            "num_inference_steps": config.get("num_inference_steps") or trained,
            **{name: asked(config, name, folder) for name in (*names, "clip_sample_range")},
        },
        str(folder),
    )
