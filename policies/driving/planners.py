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
from fastloop.policies.spec import EnvSpec

__all__ = ["PLANNERS", "describe_planner", "is_planner", "make_planner"]

PLANNERS = (*BASELINES, "idm")


def is_planner(checkpoint: str | Path) -> bool:
    """Whether this names a planner: one of `PLANNERS`, or weights of one (``.pth``).

    A planner decides in one pass, so it has no denoising loop that could be accelerated.
    """
    path = Path(checkpoint)
    return path.suffix == ".pth" or (str(checkpoint) in PLANNERS and not path.exists())


def make_planner(
    checkpoint: str | Path, *, env: EnvSpec | None = None, n_action_steps: int | None = None
) -> Policy:
    """The planner of that name, or AD-MLP with the weights of that file.

    Args:
        checkpoint: what `is_planner` says yes to.
        env: what it plans for; a baseline has to know, AD-MLP plans six waypoints at 2 Hz.
        n_action_steps: waypoints followed before planning again; 1 where it is None.

    Raises:
        CheckpointError: when the file holds anything but AD-MLP.
        SpecMismatchError: when `env` is not to be planned for.
        ValueError: for a baseline without `env`.
    """
    planner: Baseline | IDM | ADMLP
    if str(checkpoint) not in PLANNERS:
        planner = ADMLP.load(checkpoint)
    elif env is None:
        raise ValueError(
            f"{checkpoint} plans the waypoints that an environment asks for: give env=, the "
            "EnvSpec of what it will drive"
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
        CheckpointError: when the file holds anything but AD-MLP.
    """
    if str(checkpoint) in PLANNERS:
        text = inspect.getdoc(BASELINES.get(str(checkpoint), IDM)) or ""
        text = text.split("\n\n")[0]
        return {
            "kind": "planner",
            "plans": " ".join(text.split()),
            "network": None,
            "parameters": 0,
            "horizon": "what the environment asks for",
        }
    planner = ADMLP.load(checkpoint)
    described = {
        "kind": "planner",
        "plans": " ".join((inspect.getdoc(ADMLP) or "").split("\n\n")[0].split()),
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
