"""From a checkpoint's path to a policy that can plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastloop.accel.apply import accelerate
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers import build_sampler
from fastloop.policies.base import Policy
from fastloop.policies.cacheflow.folder import is_cacheflow, load_cacheflow
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.dlm.folder import is_language_model
from fastloop.policies.driving.planners import PLANNERS, is_planner, make_planner
from fastloop.policies.driving.whole_plans import WholePlans, waypoint_env
from fastloop.policies.spec import EnvSpec, SpecMismatchError
from fastloop.policies.vla.checkpoint import is_vlm
from fastloop.policies.vla.decoding import DecodingConfig
from fastloop.policies.vla.policy import VisionLanguagePlanner

__all__ = [
    "WEIGHTS",
    "find_checkpoint",
    "load_policy",
    "make_policy",
    "policy_names",
    "shipped_policies",
]

WEIGHTS = Path(__file__).parent / "weights"


def load_policy(
    checkpoint: str | Path,
    *,
    env: EnvSpec | None = None,
    sampler: Mapping[str, Any] | None = None,
    n_action_steps: int | None = None,
    device: str = "cpu",
    dtype: str = "",
) -> Policy:
    """Load a policy by a shipped name, a planner's name, or the path of a checkpoint.

    Args:
        checkpoint: a name under ``policies/weights``, one of our folders, a LeRobot policy folder,
            or a ``.ckpt`` of diffusion_policy: a `DiffusionPolicy`. The folder of a
            vision-language model: a `VisionLanguagePlanner`. A CacheFlow folder: a
            `CacheFlowPolicy`, which has no sampler either. Or one of `PLANNERS`, or AD-MLP's
            ``.pth``: a planner, which has no denoising loop.
        env: what it will drive; says what the actions mean where the file does not. Planners by
            name and vision-language models need it: they plan the waypoints of its horizon. Where
            it takes whole plans, the policy comes as `WholePlans`.
        sampler: fields of `SamplerConfig` that replace the checkpoint's; of `DecodingConfig` for a
            vision-language model.
        n_action_steps: actions executed before planning again, when not the checkpoint's; ticks of
            `env` where it takes whole plans.
        device: torch device; planners compute on the CPU.
        dtype: of a vision-language model's weights: "float32" or "bfloat16"; "" for bfloat16 on a
            GPU and float32 elsewhere.

    Raises:
        CheckpointError: when there is no such checkpoint (all names are listed), or it is damaged,
            hostile, of another architecture or without a normalizer.
        SpecMismatchError: when the file does not say what its actions mean, and `env` takes another
            number of them; when a planner cannot plan for `env`.
        ValueError: for an unknown sampler field (the known ones are listed), device or dtype; for a
            planner or CacheFlow with a sampler; for a dtype of anything but a vision-language
            model; for that or a planner by name without `env`.
    """
    if env is not None and env.action.kind == "plan":
        planner = load_policy(
            checkpoint, env=waypoint_env(env), sampler=sampler, device=device, dtype=dtype
        )
        return WholePlans(planner, env, n_action_steps=n_action_steps)
    language = not is_planner(checkpoint) and _is_language(find_checkpoint(checkpoint))
    if dtype and not language:
        raise ValueError(
            f"{checkpoint} is no vision-language model, whose weights come as {dtype}: drop dtype"
        )
    if is_planner(checkpoint):
        if sampler:
            raise ValueError(f"{checkpoint} is a planner and has no sampler: drop {dict(sampler)}")
        return make_planner(checkpoint, env=env, n_action_steps=n_action_steps)
    path = find_checkpoint(checkpoint)
    if is_cacheflow(path):
        return _load_cacheflow(path, sampler=sampler, n_action_steps=n_action_steps, device=device)
    if language:
        return _load_vision_language(
            path, env=env, decoding=sampler or {}, n_action_steps=n_action_steps, device=device,
            dtype=dtype,
        )  # fmt: skip
    return make_policy(
        load_checkpoint(path),
        env=env, sampler=sampler, n_action_steps=n_action_steps, device=device,
    )  # fmt: skip


def make_policy(
    loaded: Checkpoint,
    *,
    env: EnvSpec | None = None,
    sampler: Mapping[str, Any] | None = None,
    n_action_steps: int | None = None,
    device: str = "cpu",
) -> DiffusionPolicy:
    """The policy of a checkpoint that is already read; arguments as for `load_policy`.

    What it can save without changing its answer it saves (`accel=exact`); `accel.remove` gives the
    policy as published.
    """
    changes: dict[str, Any] = {}
    if env is not None and loaded.action is None:
        if env.action.dim != loaded.action_dim:
            raise SpecMismatchError(
                f"{loaded.source} plans {loaded.action_dim} elements, {env.name} takes "
                f"{env.action.dim}"
            )
        changes["action"] = env.action
    if env is not None and loaded.control_hz is None:
        changes["control_hz"] = env.control_hz
    if n_action_steps is not None:
        changes["n_action_steps"] = n_action_steps
    if sampler:
        _check_fields(sampler, loaded.sampler, "sampler")
        changes["sampler"] = dataclasses.replace(loaded.sampler, **sampler)
    loaded = dataclasses.replace(loaded, **changes)
    policy = DiffusionPolicy(
        loaded.spec, build_model(loaded), build_sampler(loaded.sampler), digest=loaded.digest
    )
    try:
        policy = policy if device == "cpu" else policy.to(device)
    except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
        raise ValueError(f"the policy cannot be put on device {device!r}: {error}") from error
    try:
        return accelerate(policy, AccelConfig("exact"))
    except ValueError:  # a network that is no stack of branches runs as published
        return policy


def _load_cacheflow(
    path: Path, *, sampler: Mapping[str, Any] | None, n_action_steps: int | None, device: str
) -> CacheFlowPolicy:
    if sampler:
        raise ValueError(f"{path} is a CacheFlow and has no sampler: drop {dict(sampler)}")
    policy = load_cacheflow(path, device=device)
    return policy.with_spec(n_action_steps=n_action_steps) if n_action_steps else policy


def _load_vision_language(
    path: Path,
    *,
    env: EnvSpec | None,
    decoding: Mapping[str, Any],
    n_action_steps: int | None,
    device: str,
    dtype: str,
) -> VisionLanguagePlanner:
    if env is None:
        raise ValueError(
            f"{path} plans the waypoints that an environment asks for: give env=, the EnvSpec of "
            "what it will drive, or sim= on the command line"
        )
    _check_fields(decoding, DecodingConfig, "decoding")
    policy = VisionLanguagePlanner.load(
        path, env, decoding=DecodingConfig(**decoding), device=device, dtype=dtype
    )
    if n_action_steps is not None:
        policy.spec = dataclasses.replace(policy.spec, n_action_steps=n_action_steps)
    return policy


def _is_language(path: Path) -> bool:
    return is_vlm(path) or is_language_model(path)


def _check_fields(given: Mapping[str, Any], config: Any, name: str) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := set(given) - known:
        raise ValueError(f"unknown {name} fields {sorted(unknown)}; have {sorted(known)}")


def find_checkpoint(name: str | Path) -> Path:
    """The path of a checkpoint: an existing path as it is, else a shipped policy of that name.

    Raises:
        CheckpointError: when there is neither; the shipped names and the planners are listed.
    """
    path = Path(name)
    if path.exists():
        return path
    if str(name) in shipped_policies():
        return WEIGHTS / str(name)
    raise CheckpointError(
        f"there is no checkpoint at {name} and no policy of that name; {policy_names()}"
    )


def shipped_policies() -> list[str]:
    """Names of the policies whose weights are in the package."""
    return sorted(folder.name for folder in WEIGHTS.glob("*") if folder.is_dir())


def policy_names() -> str:
    """Everything that `load_policy` knows by name, for messages."""
    return f"shipped: {', '.join(shipped_policies()) or 'none'}; planners: {', '.join(PLANNERS)}"
