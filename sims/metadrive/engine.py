"""MetaDrive (Li et al., 2022): imported, patched, and one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastloop.extras import require
from fastloop.sims.gl import choose_backend

__all__ = ["Engine", "EngineTakenError", "bare", "metadrive"]

SILENT = 60  # above logging.CRITICAL


class EngineTakenError(RuntimeError):
    """Another simulator of this process took the engine in the middle of an episode."""


def metadrive(module: str) -> ModuleType:
    """A module of MetaDrive, which runs without a display, a window, or its pictures and models.

    Its wheel has no models, and its engine would download them.

    Raises:
        MissingExtraError: where it is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    choose_backend()  # MetaDrive imports PyOpenGL
    engine = require("metadrive.engine.base_engine", extra="driving")
    engine.BaseEngine.try_pull_asset = staticmethod(lambda: None)
    return require(f"metadrive.{module}", extra="driving")


def bare() -> dict[str, Any]:
    """Configuration of an environment that makes no observations of its own, in silence, and whose
    episodes are the same each time."""
    return {
        "force_destroy": True,  # objects that are used again drift
        "store_map": False,
        "log_level": SILENT,
        "agent_observation": metadrive("obs.observation_base").DummyObservation,
        "vehicle_config": {
            "lidar": {"num_lasers": 0},
            "side_detector": {"num_lasers": 0},
            "lane_line_detector": {"num_lasers": 0},
            "show_navi_mark": False,
        },
    }


class Engine:
    """A MetaDrive environment that is there while no other one is: there is one in a process.

    Args:
        make: the environment, not begun.
        name: whose it is, in messages.
    """

    _owner: Engine | None = None

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make = make
        self._name = name
        self._env: Any = None

    def take(self) -> Any:
        """The environment, for another episode; whoever had the engine loses it.

        That costs about 0.3 s and 17 MB, so simulators had better not take turns in one process.
        """
        if Engine._owner is not self:
            if Engine._owner is not None:
                Engine._owner.close()
            self._env = self._make()
            Engine._owner = self
            self._env.lazy_init()
        return self._env

    @property
    def env(self) -> Any:
        """The environment in the middle of an episode.

        Raises:
            EngineTakenError: when another simulator began an episode since, or it is closed.
        """
        if Engine._owner is not self:
            raise EngineTakenError(
                f"{self._name} lost its episode: MetaDrive has one engine in a process, and "
                "another simulator took it. Run them in processes of their own, or reset() first"
            )
        return self._env

    def close(self) -> None:
        """Let the engine go."""
        if Engine._owner is self:
            self._env.close()
            self._env = None
            Engine._owner = None
