"""MetaDrive's own expert as a demonstrator on made-up roads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.policies.driving.metadrive_expert import MetaDriveExpert
from fastloop.sims.metadrive.expert_view import expert_view

__all__ = ["Demonstrator"]

SWERVE, SURGE = 0.1, 0.4  # of full steering, of full throttle


class Demonstrator:
    """Steers `MetaDriveMap` as `MetaDriveExpert` does, whatever the simulator shows to others; its
    ``control`` must be ``steer_throttle``.

    Args:
        weights: path of ``expert_weights.npz``; None takes those of the installed MetaDrive.

    Raises:
        MissingExtraError: without MetaDrive, where no path is given.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        self.policy = MetaDriveExpert.load(weights)

    def reset(self, sim: Any) -> None:
        """Nothing to forget.

        Raises:
            ValueError: when the simulator takes anything but steering and throttle.
        """
        if sim.env_spec.action.kind != self.policy.spec.action.kind:
            raise ValueError("MetaDrive's expert steers: say sim.control=steer_throttle")

    def act(self, sim: Any) -> NDArray[np.float64]:
        """(2,) steering and throttle of this tick."""
        view = torch.from_numpy(expert_view(sim.engine.env))
        action: NDArray[np.float64] = self.policy(view[None])[0].clamp(-1, 1).numpy()
        return action

    def nudge(self, sim: Any, rng: np.random.Generator) -> NDArray[np.float64]:
        """(2,) a swerve and a surge beside what the expert does."""
        return np.clip(self.act(sim) + rng.uniform(-1, 1, 2) * [SWERVE, SURGE], -1, 1)
