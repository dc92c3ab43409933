"""Numbers that are refused before anything is loaded."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

__all__ = ["at_least"]


def at_least(config: Any, least: int, *names: str) -> None:
    """Refuse settings (``train.steps``, say) that are smaller than `least`.

    Raises:
        ValueError: naming the setting, and what it is.
    """
    for name in names:
        if not (value := attrgetter(name)(config)) >= least:  # nan is not, either
            raise ValueError(f"{name} must be at least {least}, got {value}")
