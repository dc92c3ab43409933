"""Where MetaDrive's traffic may go from where it is: along its lanes, whichever way they part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["possible_ways"]

REACH_M = 70.0
SPACING_M = 2.0
SEAM_M = 2.5  # at most, between lanes that go on in each other
RETURN_M = 8.0  # within which a vehicle comes back to the middle of its lane


def possible_ways(env: Any) -> dict[str, list[NDArray[np.float64]]]:
    """The ways (N, 2) that each vehicle of the traffic may take from where it is, by its name.

    Who stands because nothing has set it going yet has none.

    Args:
        env: a MetaDrive environment with a traffic manager, in the middle of an episode.
    """
    graph = env.current_map.road_network.graph
    ways = {}
    for name, vehicle in env.engine.traffic_manager.spawned_objects.items():
        lane = getattr(env.engine.get_policy(name), "routing_target_lane", None)
        if lane is not None:
            here = np.asarray(vehicle.position, np.float64)
            station = max(float(lane.local_coordinates(here)[0]), 0.0)
            ways[name] = [_led_from(here, way) for way in _onward(lane, station, graph, REACH_M)]
    return ways


def _onward(lane: Any, station: float, graph: Any, reach_m: float) -> list[NDArray[np.float64]]:
    """Along a lane from `station` on, and along what follows it: a way for each branch."""
    length = max(lane.length - station, 0.1)
    count = 1 + max(1, int(min(length, reach_m) / SPACING_M))
    stations = station + np.linspace(0, length, count)
    way = np.array([lane.position(s, 0) for s in stations], np.float64)
    following = []
    if length < reach_m:
        for lanes in graph.get(lane.index[1], {}).values():
            gaps = [np.hypot(*(onward.position(0, 0) - way[-1])) for onward in lanes]
            if min(gaps) < SEAM_M:
                following.append(lanes[int(np.argmin(gaps))])
    if not following:
        return [way]
    return [
        np.concatenate([way, branch])
        for onward in following
        for branch in _onward(onward, 0.0, graph, reach_m - length)
    ]


def _led_from(here: NDArray[np.float64], way: NDArray[np.float64]) -> NDArray[np.float64]:
    """A way that begins where the vehicle is, beside the way's first point."""
    along = np.append(0.0, np.cumsum(np.hypot(*np.diff(way, axis=0).T)))
    led: NDArray[np.float64] = way + np.exp(-along / RETURN_M)[:, None] * (here - way[0])
    return led
