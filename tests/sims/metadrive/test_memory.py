"""Episodes leave nothing behind."""

import gc
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.sims.metadrive.log import MetaDriveLog  # noqa: E402
from fastloop.sims.metadrive.map import MetaDriveMap  # noqa: E402

roads = runpy.run_path(str(Path(__file__).with_name("roads.py")))
EPISODES = 6


def growth(sim, *, seed):
    """Objects more after several equal episodes, the first of which fill caches."""
    counts = []
    for _ in range(2 + EPISODES):
        sim.reset(seed=seed)
        for _ in range(3):
            sim.step(np.zeros(sim.env_spec.action.dim))
        gc.collect()
        counts.append(len(gc.get_objects()))
    sim.close()
    return counts[-1] - counts[1]


def test_recorded_scenes(tmp_path):
    folder = roads["write"](tmp_path, roads["straight"]())
    assert growth(MetaDriveLog(folder, score_plans=True), seed=0) < EPISODES  # not one an episode


def test_made_up_roads():
    sim = MetaDriveMap(blocks="SC", control="steer_throttle", own_observation=True)
    assert growth(sim, seed=1) < EPISODES  # not one an episode
