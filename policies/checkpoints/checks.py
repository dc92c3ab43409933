"""Whether the weights in a file are the network that its configuration describes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.diffusion.cross_unet import CrossUnet1D
from fastloop.policies.diffusion.dit import DiT
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.spec import TensorSpec

__all__ = [
    "NETWORKS",
    "arch_of_weights",
    "check_encoder",
    "check_network",
    "check_normalizer",
    "normalizer_widths",
    "sampler_config",
    "to_float32",
]

NETWORKS: dict[str, type[nn.Module]] = {
    "transformer": TransformerForDiffusion,
    "unet": ConditionalUnet1D,
    "unet_cross": CrossUnet1D,
    "dit": DiT,
}
Shapes = Mapping[str, tuple[int, ...]]


def check_network(
    network: str, arch: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], source: str
) -> None:
    """Compare a configuration with the weights beside it, first the numbers, then every key.

    Args:
        network: one of `NETWORKS`.
        arch: arguments of its constructor, from the configuration.
        state_dict: of the policy; its ``model.*`` entries are looked at.
        source: the file, for messages.

    Raises:
        CheckpointError: naming what the configuration says and what the weights are.
    """
    weights = {
        key.removeprefix("model."): tuple(value.shape)
        for key, value in state_dict.items()
        if key.startswith("model.")
    }
    found = arch_of_weights(network, weights, source)
    faults = [
        f"{name}: configuration {arch.get(name)!r}, weights {value!r}"
        for name, value in found.items()
        if arch.get(name) != value
    ]
    if not faults:
        try:
            with torch.device("meta"):
                module = NETWORKS[network](**arch)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}: no {network} can be built from {dict(arch)}: {error}"
            ) from error
        faults = _differences("model.", module, state_dict)
    if faults:
        raise CheckpointError(_told(f"{source}: the configuration and the weights differ", faults))


def check_encoder(
    build: Callable[[], nn.Module | None], state_dict: Mapping[str, torch.Tensor], source: str
) -> None:
    """Compare the observation encoder that a configuration describes with its weights.

    Raises:
        CheckpointError: when it cannot be built, or naming every key that differs, both sides.
    """
    try:
        with torch.device("meta"):
            encoder = build() or nn.Module()
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: no observation encoder: {error}") from error
    if faults := _differences("obs_encoder.", encoder, state_dict):
        raise CheckpointError(
            _told(f"{source}: the observation encoder and its weights differ", faults)
        )


def _differences(
    prefix: str, module: nn.Module, state_dict: Mapping[str, torch.Tensor]
) -> list[str]:
    wanted = {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}
    held = {k: tuple(v.shape) for k, v in state_dict.items() if k.startswith(prefix)}
    return [
        f"{key}: configuration {wanted.get(key, 'has none')}, weights {held.get(key, 'have none')}"
        for key in sorted(wanted.keys() | held.keys())
        if wanted.get(key) != held.get(key)
    ]


def _told(what: str, faults: list[str]) -> str:
    more = f"\n  and {len(faults) - 12} more" if len(faults) > 12 else ""
    return f"{what}:\n  " + "\n  ".join(faults[:12]) + more


def arch_of_weights(network: str, weights: Shapes, source: str) -> dict[str, Any]:
    """What a network's shapes give away of its constructor's arguments.

    Raises:
        CheckpointError: when the weights are of another kind of network.
    """
    try:
        return ARCHES[network](weights)
    except (KeyError, IndexError) as error:
        sample = ", ".join(list(weights)[:6]) or "no model.* keys at all"
        raise CheckpointError(
            f"{source}: expected the weights of a {network}, which have {error}; found {sample}"
        ) from error


def _layers(weights: Shapes, prefix: str) -> int:
    found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", key) for key in weights]
    return 1 + max((int(m.group(1)) for m in found if m), default=-1)


def _transformer(weights: Shapes) -> dict[str, Any]:
    _, tokens, n_emb = weights["pos_emb"]
    time_as_cond = "cond_pos_emb" in weights
    cond_dim = weights["cond_obs_emb.weight"][1] if "cond_obs_emb.weight" in weights else 0
    encoder_layers = _layers(weights, "encoder.layers")
    found = {
        "n_emb": n_emb,
        "horizon": tokens if time_as_cond else tokens - 1,
        "input_dim": weights["input_emb.weight"][1],
        "output_dim": weights["head.weight"][0],
        "cond_dim": cond_dim,
        "n_layer": _layers(weights, "decoder.layers") if time_as_cond else encoder_layers,
        "causal_attn": "mask" in weights,
        "time_as_cond": time_as_cond,
    }
    if time_as_cond:
        found["n_cond_layers"] = encoder_layers
    if cond_dim:
        found["n_obs_steps"] = weights["cond_pos_emb"][1] - 1
    return found


def _unet(weights: Shapes) -> dict[str, Any]:
    levels = _layers(weights, "down_modules")
    first = [weights[f"down_modules.{i}.0.blocks.0.block.0.weight"] for i in range(levels)]
    step_dim = weights["diffusion_step_encoder.3.weight"][0]
    film, cond_dim = weights["down_modules.0.0.cond_encoder.1.weight"]
    return {
        "input_dim": first[0][1],
        "down_dims": [shape[0] for shape in first],
        "kernel_size": first[0][2],
        "diffusion_step_embed_dim": step_dim,
        "global_cond_dim": cond_dim - step_dim or None,
        "cond_predict_scale": film == 2 * first[0][0],
    }


def _unet_cross(weights: Shapes) -> dict[str, Any]:
    n_emb, cond_dim = weights["cond_obs_emb.weight"]
    found = _unet(weights)
    del found["global_cond_dim"]  # its blocks are told the diffusion step alone
    n_obs_steps = weights["cond_pos_emb"][1]
    return found | {"n_emb": n_emb, "cond_dim": cond_dim, "n_obs_steps": n_obs_steps}


def _dit(weights: Shapes) -> dict[str, Any]:
    hidden_dim, input_dim = weights["input_proj.weight"]
    time_dim = weights["time_mlp.3.weight"][0]
    features = weights["transformer_blocks.0.adaLN_modulation.1.weight"][1]
    found = {
        "input_dim": input_dim,
        "hidden_dim": hidden_dim,
        "num_layers": _layers(weights, "transformer_blocks"),
        "timestep_embed_dim": time_dim,
        "global_cond_dim": features - time_dim,
        "use_rope": "transformer_blocks.0.attn.qkv_proj.weight" in weights,
        "use_positional_encoding": "pos_embedding" in weights,
    }
    if "pos_embedding" in weights:
        found["horizon"] = weights["pos_embedding"][1]
    return found


ARCHES = {"transformer": _transformer, "unet": _unet, "unet_cross": _unet_cross, "dit": _dit}


def check_normalizer(
    inputs: Mapping[str, TensorSpec],
    action_dim: int,
    state_dict: Mapping[str, torch.Tensor],
    source: str,
) -> None:
    """Insist on a usable normalizer for the actions and for every observation.

    Raises:
        CheckpointError: when it is missing, incomplete, or would lose the actions.
    """
    numbers = {
        key.removeprefix("normalizer."): value
        for key, value in state_dict.items()
        if key.startswith("normalizer.")
    }
    try:
        LinearNormalizer(normalizer_widths(inputs, action_dim)).load_state_dict(numbers)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def normalizer_widths(inputs: Mapping[str, TensorSpec], action_dim: int) -> dict[str, int]:
    """Field to its length: elements of a vector, channels of an image."""
    widths = {
        key: spec.shape[0] if len(spec.shape) == 3 else math.prod(spec.shape)
        for key, spec in inputs.items()
    }
    return {**widths, "action": action_dim}


def sampler_config(fields: Mapping[str, Any], source: str) -> SamplerConfig:
    """The sampler that a file names, tried out.

    Raises:
        CheckpointError: when a field is unknown or no sampler can be made of them.
    """
    try:
        config = SamplerConfig(**fields)
        build_sampler(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: no sampler of {dict(fields)}: {error}") from error
    return config


def to_float32(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors as float32, the others as they are."""
    return {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
