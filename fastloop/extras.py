"""Optional packages, imported where they are used; a missing one says its install line."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["MissingExtraError", "require"]


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed; the message holds the install line."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of fastloop brings it.

    Args:
        module: import name, for instance ``gym_pusht``.
        extra: the extra in ``pyproject.toml`` that lists it.

    Raises:
        MissingExtraError: with the exact `pip install` line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module!r} is needed here and cannot be imported ({error}). Install it with:\n"
            f'    pip install -c constraints.txt -e ".[{extra}]"'
        ) from error
