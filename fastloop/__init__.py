"""fastloop: diffusion and flow policies in closed loop, several times faster, with proof.

The names below are the public API. They are imported when they are first used, so that
``import fastloop`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastloop.accel.apply import accelerate
    from fastloop.accel.config import AccelConfig
    from fastloop.policies.base import Plan, Policy
    from fastloop.policies.history import History
    from fastloop.policies.load import load_policy
    from fastloop.policies.rng import Rng
    from fastloop.policies.session import Session

    __version__: str

__all__ = [
    "AccelConfig",
    "History",
    "Plan",
    "Policy",
    "Rng",
    "Session",
    "__version__",
    "accelerate",
    "load_policy",
]

_HOMES = {
    "AccelConfig": "accel.config",
    "History": "policies.history",
    "Plan": "policies.base",
    "Policy": "policies.base",
    "Rng": "policies.rng",
    "Session": "policies.session",
    "accelerate": "accel.apply",
    "load_policy": "policies.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("fastloop")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"fastloop.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
