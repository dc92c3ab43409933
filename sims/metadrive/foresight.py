"""Where MetaDrive's traffic is about to go: its drivers are asked for their lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["foreseen_ways"]

REACH_M = 70.0
SPACING_M = 2.0


def foreseen_ways(env: Any) -> dict[str, NDArray[np.float64]]:
    """The ways (N, 2) of the traffic's vehicles, from where they are along their lanes, by name.

    Who stands because nothing has set it going yet has no way.

    Args:
        env: a MetaDrive environment with a traffic manager, in the middle of an episode.
    """
    ways = {}
    for name, vehicle in env.engine.traffic_manager.spawned_objects.items():
        driver = env.engine.get_policy(name)
        lane = getattr(driver, "routing_target_lane", None)
        if lane is None or getattr(vehicle, "navigation", None) is None:
            continue
        ways[name] = _way(lane, vehicle, env.current_map.road_network.graph)
    return ways


def _way(lane: Any, vehicle: Any, graph: Any) -> NDArray[np.float64]:
    start = np.asarray(vehicle.position, np.float64)
    station = float(lane.local_coordinates(start)[0])
    points = [_points(lane, max(station, 0.0))]
    nodes = vehicle.navigation.checkpoints
    turn = nodes.index(lane.index[1]) if lane.index[1] in nodes else len(nodes)
    for here, there in zip(nodes[turn:], nodes[turn + 1 :], strict=False):
        end = points[-1][-1]
        lane = min(graph[here][there], key=lambda lane: np.hypot(*(lane.position(0, 0) - end)))
        points.append(_points(lane, 0.0))
        if sum(len(piece) for piece in points) * SPACING_M > REACH_M:
            break
    way = np.concatenate(points)
    # It comes back to the middle of its lane by and by.
    along = np.append(0.0, np.cumsum(np.hypot(*np.diff(way, axis=0).T)))
    led: NDArray[np.float64] = way + np.exp(-along / 8.0)[:, None] * (start - way[0])
    return led


def _points(lane: Any, station: float) -> NDArray[np.float64]:
    count = 1 + max(1, int(min(lane.length - station, REACH_M) / SPACING_M))
    stations = np.linspace(station, max(lane.length, station + 0.1), count)
    return np.array([lane.position(s, 0) for s in stations], np.float64)
