"""Shape of the T in PushT: clearances, keypoint error and ways around it.

All in pixels and radians. "Body frame" is the frame of gym_pusht's block body: the bar covers
x in [-60, 60], y in [0, 30], the stem x in [-15, 15], y in [30, 120].
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AGENT_RADIUS = 15.0
ARENA = (2.0, 510.0)  # where the agent may go; the walls stop only the block
GOAL = np.array([256.0, 256.0, np.pi / 4])

BOXES = np.array([[[0.0, 15.0], [60.0, 15.0]], [[0.0, 75.0], [15.0, 45.0]]])  # center, half size
OUTLINE = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float
)
AREA = 6300.0
KEYPOINTS = np.array(
    [[-60, 30], [60, 30], [60, 0], [-60, 0], [-15, 30], [-15, 120], [15, 120], [15, 30]], float
)
CENTROID = KEYPOINTS.mean(0)
SPREAD = float(np.sqrt(((KEYPOINTS - CENTROID) ** 2).sum(1).mean()))


def rotate(angle: float | Array, xy: Array) -> Array:
    """Rotate `xy` (..., 2) by `angle` (scalar or (...))."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * xy[..., 0] - s * xy[..., 1], s * xy[..., 0] + c * xy[..., 1]], -1)


def to_world(pose: Array, xy: Array) -> Array:
    """Map body-frame points (..., 2) to the world, `pose` = (x, y, angle)."""
    return rotate(pose[2], xy) + pose[:2]


def to_body(pose: Array, xy: Array) -> Array:
    """Map world points (..., 2) to the body frame of `pose` = (x, y, angle)."""
    return rotate(-pose[2], xy - pose[:2])


def clearance(xy: Array) -> Array:
    """Distance (...) of body-frame points (..., 2) from the T, zero inside."""
    outside = np.maximum(np.abs(xy[..., None, :] - BOXES[:, 0]) - BOXES[:, 1], 0.0)
    return np.sqrt((outside**2).sum(-1).min(-1))


def outward(xy: Array) -> Array:
    """Unit direction (2,) in which the clearance of a body-frame point (2,) grows fastest."""
    step = 0.5 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    c = clearance(xy + step)
    g = np.array([c[0] - c[1], c[2] - c[3]])
    n = float(np.linalg.norm(g))
    return g / n if n > 1e-6 else np.array([0.0, -1.0])


def pose_error(centroid: Array, angle: Array) -> Array:
    """Root mean square distance (...) of the 8 keypoints from their goal.

    `centroid` (..., 2) is the world position of the keypoints' mean and `angle` (...) the T's.
    """
    goal = to_world(GOAL, CENTROID)
    shift = ((centroid - goal) ** 2).sum(-1)
    return np.sqrt(shift + 2 * SPREAD**2 * (1 - np.cos(angle - GOAL[2])))


def _corner_nodes() -> Array:
    margin = AGENT_RADIUS + 4
    corners = [[-60, 0], [60, 0], [60, 30], [15, 120], [-15, 120], [-60, 30]]
    signs = [[-1, -1], [1, -1], [1, 1], [1, 1], [-1, 1], [-1, 1]]
    return np.array(corners, float) + margin * np.array(signs, float)


NODES = _corner_nodes()
SAFE = AGENT_RADIUS + 2.5


def visible(a: Array, b: Array) -> Array:
    """Whether the agent can go straight from `a` (N, 1, 2) to `b` (1, M, 2), body frame: (N, M).

    Leaving a touching position is allowed as long as the clearance grows from there on.
    """
    t = np.linspace(0, 1, 25)[:, None]
    p = a[..., None, :] + t * (b - a)[..., None, :]
    along = np.linalg.norm(b - a, axis=-1)[..., None] * t[:, 0]
    need = np.minimum(SAFE, np.minimum(clearance(a)[..., None] - 0.2 + 0.3 * along, SAFE))
    return np.asarray((clearance(p) >= need - 1e-9).all(-1))


def _all_pairs(length: Array) -> Array:
    d = length.copy()
    for k in range(len(d)):
        d = np.minimum(d, d[:, k : k + 1] + d[k])
    return d


def _lengths(a: Array, b: Array) -> Array:
    gap = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return np.where(visible(a[:, None], b[None]), gap, np.inf)


NODE_EDGES = _lengths(NODES, NODES)


class Ways:
    """Shortest ways around the T from every corner node to a fixed set of places.

    Args:
        places: (M, 2) body-frame positions with at least `SAFE` clearance.
    """

    def __init__(self, places: Array) -> None:
        self.places = places
        self.last = _lengths(NODES, places)

    def distances(self, pose: Array, agent: Array) -> Array:
        """Way lengths (M,) in pixels from the world position `agent` (2,); inf if there is none."""
        first, between = self._open(pose, agent)
        via = (first[:, None] + between).min(0)
        direct = _lengths(agent_body(pose, agent)[None], self.places)[0]
        return np.minimum(direct, (via[:, None] + self.last).min(0))

    def _open(self, pose: Array, agent: Array) -> tuple[Array, Array]:
        return open_nodes(pose, agent)


def agent_body(pose: Array, agent: Array) -> Array:
    """The agent in the body frame, moved out to a free place where it touches the T."""
    a = to_body(pose, agent)
    c = float(clearance(a))
    return a + max(0.0, SAFE + 0.5 - c) * outward(a) if c < SAFE + 0.5 else a


def open_nodes(pose: Array, agent: Array) -> tuple[Array, Array]:
    """Lengths (6,) from the agent to the nodes and (6, 6) between nodes, inf outside the arena."""
    world = to_world(pose, NODES)
    shut = ~((world > ARENA[0]) & (world < ARENA[1])).all(-1)
    first = _lengths(agent_body(pose, agent)[None], NODES)[0]
    first[shut] = np.inf
    edges = NODE_EDGES.copy()
    edges[shut] = np.inf
    edges[:, shut] = np.inf
    np.fill_diagonal(edges, np.where(shut, np.inf, 0.0))
    return first, _all_pairs(edges)


def way(pose: Array, agent: Array, place: Array) -> Array:
    """Corners (W, 2) of a shortest way in the world from `agent` to `place`, the agent excluded."""
    a, b = agent_body(pose, agent), to_body(pose, place)
    first, between = open_nodes(pose, agent)
    last = _lengths(NODES, b[None])[:, 0]
    total = first[:, None] + between + last
    points = [b]
    if not visible(a[None, None], b[None, None])[0, 0] and np.isfinite(total).any():
        i, j = np.unravel_index(np.argmin(total), total.shape)
        points = [NODES[n] for n in _chain(int(i), int(j), between)] + points
    if np.linalg.norm(a - to_body(pose, agent)) > 1e-9:
        points = [a, *points]
    return to_world(pose, np.array(points))


def _chain(i: int, j: int, between: Array) -> list[int]:
    chain = [i]
    while chain[-1] != j:
        u = chain[-1]
        step = [
            v
            for v in range(len(NODES))
            if v != u and abs(NODE_EDGES[u, v] + between[v, j] - between[u, j]) < 1e-6
        ]
        chain.append(step[0])
    return chain
