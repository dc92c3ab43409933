"""Building what a configuration names by import path, from inside fastloop only."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, get_args

__all__ = ["build", "find"]

# What a setting of each type may be; NumPy's numbers are among them.
SCALARS: dict[type, Any] = {
    bool: bool, int: Integral, float: Real, str: str | PurePath, NoneType: NoneType,
}  # fmt: skip


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
            arguments or their types.
    """
    found = find(config, what)
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{what}: {config['_target_']} does not take {sorted(arguments)}: {error}"
        ) from error
    _check_types(found, arguments, what)
    return found(**arguments)


def _check_types(found: Any, arguments: Mapping[str, Any], what: str) -> None:
    """Refuse texts where a number is wanted, and the like; what is no scalar checks itself."""
    wanted = inspect.signature(found, eval_str=True).parameters
    for name, value in arguments.items():
        kind = wanted[name].annotation if name in wanted else None
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if set(kinds) <= set(SCALARS) and not any(_fits(value, kind) for kind in kinds):
            told = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{what}.{name} is {told}, got {value!r}, a {type(value).__name__}")


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    return isinstance(value, SCALARS[kind])
