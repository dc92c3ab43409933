"""Motion around a keyframe, against a slow walk through the devkit's tables."""

from itertools import pairwise

import numpy as np
import pytest

from fastloop.datasets.nuscenes.moments import ego_motion
from fastloop.datasets.nuscenes.scenes import NuScenes


@pytest.fixture(scope="module")
def lidar_origin(devkit):
    """The devkit's pose (4, 4) of a sample's lidar in the map."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def pose(token):
        sweep = devkit.get("sample_data", devkit.get("sample", token)["data"]["LIDAR_TOP"])
        ego = devkit.get("ego_pose", sweep["ego_pose_token"])
        mount = devkit.get("calibrated_sensor", sweep["calibrated_sensor_token"])
        matrices = [
            transform_matrix(it["translation"], Quaternion(it["rotation"])) for it in (ego, mount)
        ]
        return matrices[0] @ matrices[1]

    return pose


def neighbors(devkit, token, key, most):
    tokens = []
    while len(tokens) < most and (token := devkit.get("sample", token)[key]):
        tokens.append(token)
    return tokens


def test_futures_and_histories_are_those_of_the_tables(both, devkit, lidar_origin):
    data = NuScenes(both, "v1.0-mini")
    motion = ego_motion(data.tables)
    for k in range(0, len(data), 5):
        token = data.tables.tokens[k]
        now = np.linalg.inv(lidar_origin(token))
        ahead = neighbors(devkit, token, "next", 6)
        waypoints = [(now @ lidar_origin(t))[:2, 3] for t in ahead]
        assert motion.known[k].tolist() == [True] * len(ahead) + [False] * (6 - len(ahead))
        for waypoint, expected in zip(motion.future[k], waypoints, strict=False):
            np.testing.assert_allclose(waypoint, [expected[1], -expected[0]], atol=1e-9)
        assert not motion.future[k, len(ahead) :].any()
        side = waypoints[-1][0] if waypoints else 0  # to the right
        assert motion.intent[k] == (3 if side >= 2 else 2 if side <= -2 else 1)

        before = neighbors(devkit, token, "prev", 6)
        assert min(motion.past[k], 6) == len(before)
        poses = [now @ lidar_origin(t) for t in [token, *before]]
        places = [np.array([pose[1, 3], -pose[0, 3]]) for pose in poses]
        speeds = [(a - b) / 0.5 for a, b in pairwise(places)]
        changes = [(a - b) / 0.5 for a, b in pairwise(speeds)]
        for row in range(5):
            back = min(4 - row, len(before))
            speed = speeds[back] if back < len(speeds) else [0, 0]
            change = changes[back] if back < len(changes) else [0, 0]
            expected = [*places[back], *speed, *change]
            np.testing.assert_allclose(motion.states[k, row], expected, atol=1e-6)
            turn = np.arctan2(poses[back][1, 0], poses[back][0, 0])
            assert motion.headings[k, row] == pytest.approx(turn, abs=1e-9)
        np.testing.assert_allclose(motion.states[k, -1, :2], 0, atol=1e-9)
