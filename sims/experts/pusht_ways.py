"""Shortest ways of the round agent around the T of PushT.

The free space around the T is a visibility graph over one node at each of its six convex corners.
It is fixed in the body frame; the walls only close nodes.
"""

from __future__ import annotations

import numpy as np

from fastloop.sims.experts.pusht_geometry import (
    AGENT_RADIUS,
    Array,
    clearance,
    outward,
    to_body,
    to_world,
)

ARENA = (2.0, 510.0)  # where the agent's center may go
SAFE = AGENT_RADIUS + 2.5  # clearance that a way keeps from the T
NODES = np.array([[-79, -19], [79, -19], [79, 49], [34, 139], [-34, 139], [-79, 49]], float)


def visible(a: Array, b: Array) -> Array:
    """Whether the agent can go straight from `a` (..., 2) to `b` (..., 2), body frame: (...).

    A place closer to the T than `SAFE` may be left as long as the clearance grows on the way.
    """
    share = np.linspace(0, 1, 17)
    points = a[..., None, :] + share[:, None] * (b - a)[..., None, :]
    along = np.linalg.norm(b - a, axis=-1)[..., None] * share
    needed = np.minimum(SAFE, clearance(a)[..., None] - 0.2 + 0.3 * along)
    return np.asarray((clearance(points) >= needed - 1e-9).all(-1))


def _lengths(a: Array, b: Array) -> Array:
    """Straight lengths (N, M) between `a` (N, 2) and `b` (M, 2), inf where the T is between."""
    a, b = a[:, None], b[None]
    return np.where(visible(a, b), np.linalg.norm(b - a, axis=-1), np.inf)


_NODE_LENGTHS = _lengths(NODES, NODES)


def _stand(pose: Array, agent: Array) -> Array:
    """The agent in the body frame, moved out of contact with the T."""
    place = to_body(pose, agent)
    short = SAFE + 0.5 - float(clearance(place))
    return place + short * outward(place) if short > 0 else place


def _reach(pose: Array, stand: Array) -> tuple[Array, Array, Array]:
    """Lengths (6,) from `stand` to the nodes, (6, 6) between nodes, and the next node (6, 6)."""
    world = to_world(pose, NODES)
    shut = ~((world > ARENA[0]) & (world < ARENA[1])).all(-1)
    first = np.where(shut, np.inf, _lengths(stand[None], NODES)[0])
    between = np.where(shut | shut[:, None], np.inf, _NODE_LENGTHS)
    following = np.tile(np.arange(len(NODES)), (len(NODES), 1))
    for k in range(len(NODES)):  # Floyd and Warshall
        via = between[:, k : k + 1] + between[k]
        following = np.where(via < between, following[:, k : k + 1], following)
        between = np.minimum(via, between)
    return first, between, following


class Ways:
    """Lengths of the ways to a fixed set of body-frame places.

    Args:
        places: (M, 2), each with at least `SAFE` clearance.
    """

    def __init__(self, places: Array) -> None:
        self._places = places
        self._last = _lengths(NODES, places)

    def lengths(self, pose: Array, agent: Array) -> Array:
        """Lengths (M,) in pixels from the world position `agent` (2,), inf without a way."""
        stand = _stand(pose, agent)
        first, between, _ = _reach(pose, stand)
        to_node = (first[:, None] + between).min(0)
        around = (to_node[:, None] + self._last).min(0)
        return np.asarray(np.minimum(around, _lengths(stand[None], self._places)[0]))


def way(pose: Array, agent: Array, place: Array) -> Array:
    """Corners (W, 2) in the world of a shortest way from `agent` (2,) to `place` (2,).

    The last corner is `place`; the agent is not among them. Without a way it is the straight line.
    """
    stand, goal = _stand(pose, agent), to_body(pose, place)
    first, between, following = _reach(pose, stand)
    total = first[:, None] + between + _lengths(NODES, goal[None])[:, 0]
    corners = [goal]
    if not visible(stand, goal) and np.isfinite(total).any():
        node, last = (int(k) for k in np.unravel_index(np.argmin(total), total.shape))
        nodes = [node]
        while node != last:
            node = int(following[node, last])
            nodes.append(node)
        corners = [*NODES[nodes], goal]
    if not np.array_equal(stand, to_body(pose, agent)):
        corners = [stand, *corners]
    return to_world(pose, np.array(corners))
