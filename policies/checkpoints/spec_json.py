"""What a policy reads and decides, in the JSON of a checkpoint folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fastloop.policies.checkpoints.checkpoint import Checkpoint
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

__all__ = ["spec_from_json", "spec_to_json"]


def spec_to_json(described: Checkpoint | PolicySpec, action_dim: int) -> dict[str, Any]:
    """Plain values that `spec_from_json` reads."""
    action = described.action
    return {
        "inputs": {
            key: {**dataclasses.asdict(s), "low": _finite(s.low), "high": _finite(s.high)}
            for key, s in described.inputs.items()
        },
        "action_dim": action_dim,
        "action": None
        if action is None
        else {
            **dataclasses.asdict(action),
            "low": [_finite(value) for value in action.low],
            "high": [_finite(value) for value in action.high],
        },
        "n_obs_steps": described.n_obs_steps,
        "horizon": described.horizon,
        "n_action_steps": described.n_action_steps,
        "control_hz": described.control_hz,
        "lags": list(described.lags),
    }


def spec_from_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `PolicySpec`, and ``action_dim``, of what `spec_to_json` gave."""
    action = spec["action"]
    return {
        "inputs": {
            key: TensorSpec(
                shape=tuple(value["shape"]),
                dtype=value["dtype"],
                low=_bound(value["low"], -math.inf),
                high=_bound(value["high"], math.inf),
                names=tuple(value["names"]),
                unit=value["unit"],
            )
            for key, value in spec["inputs"].items()
        },
        "action": None
        if action is None
        else ActionSpec(
            dim=action["dim"],
            kind=action["kind"],
            low=tuple(_bound(value, -math.inf) for value in action["low"]),
            high=tuple(_bound(value, math.inf) for value in action["high"]),
            names=tuple(action["names"]),
            unit=action["unit"],
        ),
        **{
            name: spec[name]
            for name in ("action_dim", "n_obs_steps", "horizon", "n_action_steps", "control_hz")
        },
        "lags": tuple(spec.get("lags", ())),  # not in folders of before they were known
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: None stands for no bound."""
    return value if math.isfinite(value) else None


def _bound(value: float | None, unbounded: float) -> float:
    return unbounded if value is None else value
