"""Straight pushes of the T in PushT and what each of them does, tried in the simulator's physics.

The T slides without inertia, so away from the walls a push moves it the same way in its own frame
wherever it lies: one table, filled once a process, predicts every push from every pose.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloop.extras import require
from fastloop.sims.experts import pusht_geometry as geometry
from fastloop.sims.experts.pusht_geometry import AGENT_RADIUS, Array
from fastloop.sims.experts.pusht_ways import SAFE, Ways

GAP = 8.0  # free way between a push's start and the T
SPACING = 3.0  # between contact points
TILTS = (-0.35, 0.0, 0.35)  # of the direction against the face's normal
LENGTHS = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 49, 60, 73, 90, 110])


class Physics:
    """The T, the agent and the walls of gym-pusht in a space of their own, to try pushes in.

    Raises:
        MissingExtraError: if gym-pusht is not installed.
    """

    def __init__(self) -> None:
        env = require("gym_pusht.envs.pusht", extra="pusht").PushTEnv
        self._space = require("pymunk", extra="pusht").Space()
        self._space.damping = 0.0
        corners = [(5, 5), (506, 5), (506, 506), (5, 506)]
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
            self._space.add(env.add_segment(self._space, a, b, 2))
        self._agent = env.add_circle(self._space, (0, 0), AGENT_RADIUS)
        self._block, _ = env.add_tee(self._space, (256, 256), 0.0)

    def push(self, pose: Array, start: Array, direction: Array, length: int) -> Array:
        """Poses (length + 1, 3) of the T, one a pixel, as the agent goes straight from `start`.

        `pose` (3,), `start` (2,) and the unit vector `direction` (2,) are in the world.
        """
        agent, block = self._agent, self._block
        block.angle = float(pose[2])  # before the position: it turns about the center of mass
        block.position = tuple(pose[:2].tolist())
        block.velocity, block.angular_velocity = (0, 0), 0
        agent.position = tuple(start.tolist())
        agent.velocity = tuple((100 * direction).tolist())
        self._space.reindex_shapes_for_body(agent)
        self._space.reindex_shapes_for_body(block)
        poses = [(*block.position, block.angle)]
        for _ in range(length):
            self._space.step(0.01)
            poses.append((*block.position, block.angle))
        return np.array(poses)


class Pushes(NamedTuple):
    """M pushes in the body frame and their outcomes after L lengths (`LENGTHS`, past the gap).

    Attributes:
        start: (M, 2) where the agent's center starts, `GAP` before the T.
        direction: (M, 2) unit vectors.
        centroid: (M, L, 2) mean keypoint afterwards, in the body frame before.
        turn: (M, L) rotation of the T.
        neighbors: (2, M) the pushes `SPACING` to either side on the same face, or the push itself.
        ways: lengths of the ways to the starts.
    """

    start: Array
    direction: Array
    centroid: Array
    turn: Array
    neighbors: NDArray[np.int64]
    ways: Ways


@functools.lru_cache(maxsize=1)
def push_table() -> Pushes:
    """Every push with a free start, tried from the middle of the arena (0.2 s, then kept)."""
    keys, starts, directions = [], [], []
    for face, (corner, tangent, normal, length) in enumerate(geometry.edges()):
        for k, u in enumerate(np.arange(SPACING / 2, length, SPACING)):
            for tilt in TILTS:
                direction = -geometry.rotate(tilt, normal)
                start = corner + u * tangent + AGENT_RADIUS * normal - GAP * direction
                path = start + np.arange(GAP - 1)[:, None] * direction
                free = geometry.clearance(path) > AGENT_RADIUS + 0.2
                if free.all() and geometry.clearance(start) > SAFE:
                    keys.append((face, tilt, k))
                    starts.append(start)
                    directions.append(direction)

    middle = np.array([256.0, 256.0, 0.0])
    physics = Physics()
    after = GAP + LENGTHS
    poses = np.stack(
        [
            physics.push(middle, start + middle[:2], direction, int(after[-1]))[after.astype(int)]
            for start, direction in zip(starts, directions, strict=True)
        ]
    )
    row = {key: i for i, key in enumerate(keys)}
    neighbors = [
        [row.get((face, tilt, k + side), i) for i, (face, tilt, k) in enumerate(keys)]
        for side in (-1, 1)
    ]
    return Pushes(
        start=np.array(starts),
        direction=np.array(directions),
        centroid=geometry.centroids(poses) - middle[:2],
        turn=poses[..., 2],
        neighbors=np.array(neighbors),
        ways=Ways(np.array(starts)),
    )
