"""Planners by name: the baselines, and weights of driving policies that others published."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from fastloop.policies.base import Policy
from fastloop.policies.driving.ad_mlp import ADMLP
from fastloop.policies.driving.baselines import BASELINES, Baseline
from fastloop.policies.driving.idm import IDM
from fastloop.policies.driving.metadrive_expert import MetaDriveExpert
from fastloop.policies.spec import EnvSpec

__all__ = ["PLANNERS", "describe_planner", "is_planner", "make_planner"]

EXPERT = MetaDriveExpert.name
PLANNERS = (*BASELINES, "idm", EXPERT)


def is_planner(checkpoint: str | Path) -> bool:
    """Whether this names a planner: one of `PLANNERS`, or weights of one (``.pth``, ``.npz``).

    A planner decides in one pass, so it has no denoising loop that could be accelerated.
    """
    path = Path(checkpoint)
    return path.suffix in (".pth", ".npz") or (str(checkpoint) in PLANNERS and not path.exists())


def make_planner(
    checkpoint: str | Path, *, env: EnvSpec | None = None, n_action_steps: int | None = None
) -> Policy:
    """The planner of that name, or with the weights of that file: AD-MLP's ``.pth``, or the
    ``.npz`` of MetaDrive's expert.

    Args:
        checkpoint: what `is_planner` says yes to.
        env: what it plans for; a baseline has to know, AD-MLP plans six waypoints at 2 Hz.
        n_action_steps: waypoints followed before planning again; 1 where it is None.

    Raises:
        CheckpointError: when the file holds anything else.
        MissingExtraError: for MetaDrive's expert by name, without MetaDrive.
        SpecMismatchError: when `env` is not to be planned for.
        ValueError: for a baseline without `env`.
    """
    planner: Baseline | IDM | ADMLP | MetaDriveExpert
    if _has_weights(checkpoint):
        planner = _load(checkpoint, env)
    elif env is None:
        raise ValueError(
            f"{checkpoint} plans the waypoints that an environment asks for: give env=, the "
            "EnvSpec of what it will drive, or sim= on the command line"
        )
    else:
        planner = IDM(env) if str(checkpoint) == "idm" else Baseline(str(checkpoint), env)
    if n_action_steps is not None:
        planner.spec = dataclasses.replace(planner.spec, n_action_steps=n_action_steps)
    return planner


def describe_planner(checkpoint: str | Path, *, keys: bool = False) -> dict[str, Any]:
    """What a planner is, as plain values for printing.

    Args:
        checkpoint: what `is_planner` says yes to.
        keys: also list every tensor with its shape.

    Raises:
        CheckpointError: when the file holds anything but AD-MLP or MetaDrive's expert.
        MissingExtraError: for MetaDrive's expert by name, without MetaDrive.
    """
    if not _has_weights(checkpoint):
        return {
            "kind": "planner",
            "plans": _first_words(BASELINES.get(str(checkpoint), IDM)),
            "network": None,
            "parameters": 0,
            "horizon": "what the environment asks for",
        }
    planner = _load(checkpoint)
    described = {
        "kind": "planner",
        "plans": _first_words(type(planner)),
        "digest": planner.digest,
        "network": "mlp",
        "parameters": sum(weight.numel() for weight in planner.parameters()),
        "inputs": {
            key: f"{spec.dtype} {list(spec.shape)}" for key, spec in planner.spec.inputs.items()
        },
        "action": dataclasses.asdict(planner.spec.action),
        "control_hz": planner.spec.control_hz,
        "horizon": planner.spec.horizon,
    }
    if keys:
        described["keys"] = {k: list(v.shape) for k, v in planner.state_dict().items()}
    return described


def _has_weights(checkpoint: str | Path) -> bool:
    return str(checkpoint) == EXPERT or str(checkpoint) not in PLANNERS


def _load(checkpoint: str | Path, env: EnvSpec | None = None) -> ADMLP | MetaDriveExpert:
    if Path(checkpoint).suffix == ".pth":
        return ADMLP.load(checkpoint)
    return MetaDriveExpert.load(None if str(checkpoint) == EXPERT else checkpoint, env=env)


def _first_words(planner: object) -> str:
    return " ".join((inspect.getdoc(planner) or "").split("\n\n")[0].split())
