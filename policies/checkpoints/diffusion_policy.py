"""Checkpoints of real-stanford/diffusion_policy: a torch zip of configuration and state dicts.

The layout is that of its `BaseWorkspace.save_checkpoint`: ``cfg`` (omegaconf), ``state_dicts``
(``model``, ``ema_model``, ``optimizer``) and ``pickles`` (steps and epochs). Evaluation there uses
``ema_model`` exactly when ``training.use_ema`` is set, and so does this reader.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastloop.accel.samplers import SamplerConfig
from fastloop.policies.checkpoints.archive import open_archive
from fastloop.policies.checkpoints.cameras import from_robomimic
from fastloop.policies.checkpoints.checkpoint import Checkpoint, file_digest
from fastloop.policies.checkpoints.checks import (
    check_encoder,
    check_network,
    check_normalizer,
    sampler_config,
    to_float32,
)
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.expressions import Config, plain
from fastloop.policies.checkpoints.unpickle import StoredTensor, small_int
from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.spec import TensorSpec

__all__ = ["load"]

# `_target_` of cfg.policy: the network, and whether it sees images (through robomimic's encoder).
POLICIES = {
    f"diffusion_policy.policy.{module}.{name}": what
    for module, name, what in (
        (
            "diffusion_transformer_lowdim_policy",
            "DiffusionTransformerLowdimPolicy",
            ("transformer", False),
        ),
        (
            "diffusion_transformer_hybrid_image_policy",
            "DiffusionTransformerHybridImagePolicy",
            ("transformer", True),
        ),
        ("diffusion_unet_lowdim_policy", "DiffusionUnetLowdimPolicy", ("unet", False)),
        (
            "diffusion_unet_hybrid_image_policy",
            "DiffusionUnetHybridImagePolicy",
            ("unet", True),
        ),
    )
}
SCHEDULERS = {
    "diffusers.schedulers.scheduling_ddpm.DDPMScheduler": "ddpm",
    "diffusers.schedulers.scheduling_ddim.DDIMScheduler": "ddim",
}
TRANSFORMER = (
    "n_layer", "n_head", "n_emb", "p_drop_emb", "p_drop_attn", "causal_attn", "time_as_cond",
    "n_cond_layers",
)  # fmt: skip
UNET = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups", "cond_predict_scale")
# Bookkeeping of upstream's modules that no network reads.
IGNORED = ("_dummy_variable", "mask_generator._dummy_variable", "obs_encoder._dummy_variable")


def load(path: str | Path) -> Checkpoint:
    """Read a ``.ckpt`` without running anything from it.

    Raises:
        CheckpointError: when it is damaged, of another kind, inconsistent or without a normalizer.
        RefusedError: when it tries to import, call or evaluate.
    """
    path = Path(path)
    with open_archive(path) as archive:
        payload = archive.payload
        if not isinstance(payload, dict) or not {"cfg", "state_dicts"} <= payload.keys():
            found = ", ".join(map(str, payload)) if isinstance(payload, dict) else type(payload)
            raise CheckpointError(
                f"{path} holds {found}; expected diffusion_policy's cfg, state_dicts, pickles"
            )
        config = Config(plain(payload["cfg"]))
        network, sees = _choose(config.get("policy._target_"), POLICIES, "policy", path)
        ema = bool(config.get("training.use_ema", False))
        stored = _state_dict(payload["state_dicts"], "ema_model" if ema else "model", path)
        state_dict = to_float32(archive.read_all(stored))
        pickles = payload.get("pickles")

    _refuse_other_conditioning(config, network, sees, path)
    inputs, action_dim = _shapes(config, sees)
    vision = _vision(config, path) if sees else None
    steps = {
        name: config.get(f"policy.{name}") for name in ("n_obs_steps", "horizon", "n_action_steps")
    }
    features = sum(
        vision.feature_dim if vision and len(spec.shape) == 3 else math.prod(spec.shape)
        for spec in inputs.values()
    )
    arch = _arch(config, network, sees, action_dim, features, steps)
    check_network(network, arch, state_dict, str(path))
    check_encoder(
        lambda: build_encoder(inputs, steps["n_obs_steps"], vision=vision),
        state_dict,
        str(path),
    )
    check_normalizer(inputs, action_dim, state_dict, str(path))
    training = {
        name: value
        for name in ("global_step", "epoch")
        if isinstance(pickles, dict) and (value := small_int(pickles.get(name))) is not None
    }
    training |= {"task": config.get("task_name", None), "seed": config.get("training.seed", None)}
    return Checkpoint(
        kind="diffusion_policy",
        network=network,
        arch=arch,
        sampler=_sampler(config, path),
        state_dict=state_dict,
        inputs=inputs,
        action_dim=action_dim,
        **steps,
        vision=vision,
        ema=ema,
        training=training,
        source=str(path),
        digest=file_digest(path),
    )


def _choose(target: Any, table: dict[str, Any], what: str, path: Path) -> Any:
    if target not in table:
        known = "\n  ".join(table)
        raise CheckpointError(f"{path}: unknown {what} {target!r}; this reader knows\n  {known}")
    return table[target]


def _state_dict(state_dicts: Any, name: str, path: Path) -> dict[str, StoredTensor]:
    held = state_dicts.get(name) if isinstance(state_dicts, dict) else None
    if not isinstance(held, dict) or not held:
        found = ", ".join(map(str, state_dicts)) if isinstance(state_dicts, dict) else "no dict"
        raise CheckpointError(
            f"{path}: training.use_ema asks for {name!r}; state_dicts has {found}"
        )
    named = {from_robomimic(str(key)): value for key, value in held.items() if key not in IGNORED}
    kept = {key: value for key, value in named.items() if key is not None}
    for key, value in kept.items():
        if not isinstance(value, StoredTensor):
            raise CheckpointError(f"{path}: {name}[{key!r}] is a {type(value).__name__}, no tensor")
        if not key.startswith(("model.", "normalizer.", "obs_encoder.")):
            raise CheckpointError(
                f"{path}: unexpected key {key!r} in {name}; expected model.*, normalizer.* and "
                "obs_encoder.*"
            )
    return kept


def _refuse_other_conditioning(config: Config, network: str, sees: bool, path: Path) -> None:
    """Refuse in-painting and cut horizons, which no released configuration uses."""
    # Image policies condition on features unless told otherwise, the others have to be told.
    wanted = {"obs_as_cond" if network == "transformer" else "obs_as_global_cond": (True, sees)}
    if network == "unet" and not sees:
        wanted["oa_step_convention"] = (True, False)
    wanted |= {"obs_as_local_cond": (False, False), "pred_action_steps_only": (False, False)}
    for name, (needed, default) in wanted.items():
        value = config.get(f"policy.{name}", default)
        if bool(value) != needed:
            raise CheckpointError(
                f"{path}: policy.{name} is {value!r}; only {needed} (as in every released "
                "configuration) is supported"
            )


def _shapes(config: Config, sees: bool) -> tuple[dict[str, TensorSpec], int]:
    if not sees:
        obs = TensorSpec((config.get("policy.obs_dim"),))
        return {"obs": obs}, config.get("policy.action_dim")
    meta = config.get("policy.shape_meta")
    inputs = {}
    for key, attributes in meta["obs"].items():
        shape = tuple(attributes["shape"])
        image = attributes.get("type", "low_dim") == "rgb"
        inputs[key] = TensorSpec(shape, "uint8", 0, 255) if image else TensorSpec(shape)
    return inputs, math.prod(meta["action"]["shape"])


def _arch(
    config: Config,
    network: str,
    sees: bool,
    action_dim: int,
    features: int,
    steps: dict[str, Any],
) -> dict[str, Any]:
    """Constructor arguments: written out for low-dimensional policies, implied for image ones."""
    section = "policy" if sees else "policy.model"
    names = TRANSFORMER if network == "transformer" else UNET
    arch = {
        name: value
        for name in names
        if (value := config.get(f"{section}.{name}", None)) is not None
    }
    if network == "transformer":
        implied = {
            "input_dim": action_dim,
            "output_dim": action_dim,
            "horizon": steps["horizon"],
            "n_obs_steps": steps["n_obs_steps"],
            "cond_dim": features,
        }
    else:
        implied = {"input_dim": action_dim, "global_cond_dim": features * steps["n_obs_steps"]}
    for name, value in implied.items():
        arch[name] = value if sees else config.get(f"{section}.{name}", value)
    return arch


def _sampler(config: Config, path: Path) -> SamplerConfig:
    scheduler = config.get("policy.noise_scheduler")
    kind = _choose(scheduler.get("_target_"), SCHEDULERS, "noise scheduler", path)
    fixed = {
        "variance_type": "fixed_small",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "trained_betas": None,
    }
    for name, needed in fixed.items():
        if scheduler.get(name, needed) != needed:
            raise CheckpointError(
                f"{path}: noise_scheduler.{name} is {scheduler[name]!r}; only {needed!r} will do"
            )
    # diffusers' defaults are not ours: what matters has to be written in the file.
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
    given = {name: config.get(f"policy.noise_scheduler.{name}") for name in names}
    defaults = {"prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0}
    given |= {name: scheduler.get(name, default) for name, default in defaults.items()}
    steps = config.get("policy.num_inference_steps", None) or given["num_train_timesteps"]
    return sampler_config({"kind": kind, "num_inference_steps": steps, **given}, str(path))


def _vision(config: Config, path: Path) -> VisionConfig:
    """The encoder of robomimic 0.2 as diffusion_policy configures it, which rectifies features."""
    if not config.get("policy.obs_encoder_group_norm", False):
        raise CheckpointError(
            f"{path}: policy.obs_encoder_group_norm is false; image encoders with batch norm are "
            "not supported"
        )
    crop = config.get("policy.crop_shape", [76, 76])
    return VisionConfig(crop_shape=tuple(crop) if crop else None, final_relu=True)
