"""Which simulator to build, as data that travels to the process that builds it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastloop.sims.base import Sim
from fastloop.sims.targets import build

__all__ = ["SimConfig"]


@dataclass(frozen=True)
class SimConfig:
    """The import path of a `Sim` inside fastloop and the arguments to build it with.

    Attributes:
        target: for instance ``fastloop.sims.pusht.PushT``. Nothing outside of `fastloop` is
            imported, so a configuration cannot name code of its own.
        arguments: keyword arguments of the class.

    Raises:
        ValueError: for a target outside of fastloop.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.target.startswith("fastloop."):
            raise ValueError(
                f"a simulator's target must be a class inside fastloop, such as "
                f"fastloop.sims.pusht.PushT; got {self.target!r}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SimConfig:
        """From a group of ``configs/sim``: ``_target_`` and the arguments beside it."""
        if "_target_" not in config:
            raise ValueError(f"a simulator's config needs _target_, got {sorted(config)}")
        arguments = {key: value for key, value in config.items() if key != "_target_"}
        return cls(config["_target_"], arguments)

    def build(self) -> Sim:
        """The simulator.

        Raises:
            ValueError: when the target does not exist, is no simulator, or does not take the
                arguments.
        """
        module, _, name = self.target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            raise ValueError(f"there is no simulator {self.target} ({error})") from error
        if not (isinstance(found, type) and issubclass(found, Sim)):
            raise ValueError(f"{self.target} is no simulator: a class derived from Sim is needed")
        sim: Sim = build({"_target_": self.target, **self.arguments}, "sim")
        return sim
