"""What MetaDrive's own expert is shown: its vehicle, its way and 240 beams of a lidar."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.policies.driving.metadrive_expert import VIEW, VIEW_SPEC
from fastloop.sims.metadrive.engine import metadrive

__all__ = ["VIEW", "VIEW_SPEC", "expert_view"]

# As in MetaDrive's examples/ppo_expert. The speed is that of the vehicles which the expert was
# trained with: speeds are divided by it.
AS_TRAINED: dict[str, Any] = {
    "lidar": {
        "num_lasers": 240,
        "distance": 50,
        "num_others": 4,
        "gaussian_noise": 0.0,
        "dropout_prob": 0.0,
        "add_others_navi": False,
    },
    "side_detector": {"num_lasers": 0},
    "lane_line_detector": {"num_lasers": 0},
    "max_speed_km_h": 80.0,
}


def expert_view(env: Any) -> NDArray[np.float32]:
    """(275,) MetaDrive's LidarStateObservation of the present moment, each number in 0 to 1: 9 of
    the vehicle, 10 of its way, 16 of the nearest four vehicles, 240 distances clockwise.

    The vehicle's configuration is that of the expert's training for as long as it looks, so the
    numbers mean what they meant then, whatever the vehicle is set to.

    Args:
        env: a MetaDriveEnv in the middle of an episode.
    """
    vehicle = env.agent
    module = type(vehicle.navigation)
    eye = metadrive("obs.state_obs").LidarStateObservation(
        {"vehicle_config": {"navigation_module": module}, "random_agent_model": False}
    )
    kept = {key: vehicle.config[key] for key in AS_TRAINED}
    vehicle.config.update(AS_TRAINED)
    try:
        seen: NDArray[np.float32] = eye.observe(vehicle)
    finally:
        vehicle.config.update(kept)
    return seen
