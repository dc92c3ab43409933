"""Building what a configuration names by import path, from inside fastloop only."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ["build", "find"]


def find(config: Mapping[str, Any], what: str) -> Any:
    """The class or function under ``_target_``; raises like `build`."""
    target = str(config.get("_target_", ""))
    if not target.startswith("fastloop."):
        raise ValueError(
            f"{what}: _target_ must name something inside fastloop, got {target or 'nothing'!r}"
        )
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{what}: there is no {target} ({error})") from error


def build(config: Mapping[str, Any], what: str) -> Any:
    """Call the class or function under ``_target_`` with the other entries as arguments.

    Args:
        config: a composed configuration group.
        what: names it in errors, for instance ``expert``.

    Raises:
        ValueError: when there is no target, it lies outside of fastloop, or it does not take these
            arguments.
    """
    found = find(config, what)
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{what}: {config['_target_']} does not take {sorted(arguments)}: {error}"
        ) from error
    return found(**arguments)
