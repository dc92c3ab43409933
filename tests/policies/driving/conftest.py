"""Two environments that judge plans: 6 waypoints at 2 Hz, and 20 at 4 Hz."""

import math

import pytest

from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec

WAYPOINT = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")


def judge(rows, hz, horizon, *, heading):
    observations = {
        "observation.ego_states": TensorSpec((rows, 6)),
        "observation.intent": TensorSpec((), "int64"),
    }
    if heading:
        observations["observation.ego_heading"] = TensorSpec((rows,))
    return EnvSpec("Drives", observations, WAYPOINT, hz, max_steps=1, horizon=horizon)


@pytest.fixture
def short():
    """As nuScenes has it."""
    return judge(5, 2.0, 6, heading=True)


@pytest.fixture
def long():
    """As WOD-E2E has it."""
    return judge(16, 4.0, 20, heading=False)
