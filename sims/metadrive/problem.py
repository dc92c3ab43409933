"""Drives that nobody recorded from within: an ego where CommonRoad's planning problem starts."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.datasets.errors import DatasetError

__all__ = ["with_ego"]

SIZE = (4.508, 1.61, 1.42)  # CommonRoad's usual vehicle, a BMW 320i
CHANGE_M, INSIDE_M = 30.0, 15.0  # to change lanes in; to follow a lane that is to be reached
Floats = NDArray[np.float64]


def with_ego(log: DrivingLog) -> DrivingLog:
    """The log with an ego called ``ego``, which starts as its first planning problem says and goes
    along the lanes to the nearest of its goals, evenly, in the time of the log.

    Raises:
        DatasetError: where the problem has no place to start or to go to, or no lanes lead there.
    """
    problem = log.metadata["planning_problems"][0]
    if len(log) < 2:
        raise DatasetError(f"{log.name} has one stamp, so nobody moves in it")
    try:
        start = _center(problem["initial"]["position"][0])
        heading = float(np.mean(problem["initial"]["heading"]))
        speed = float(np.mean(problem["initial"]["velocity"]))
        goals = [place for goal in problem["goals"] for place in goal.get("position", ())]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DatasetError(f"{log.name}: its planning problem has no state to start in") from error
    if not goals:
        raise DatasetError(f"{log.name}: its planning problem has no place to go to")
    lanes = {f.id: f for f in log.map if f.kind == "lane" and not f.area and len(f.points) > 1}
    ways = [way for goal in goals if (way := _way(lanes, start, heading, goal)) is not None]
    if not ways:
        raise DatasetError(f"{log.name}: no lanes lead from its planning problem's start to a goal")
    way = min(ways, key=lambda way: float(_stations(way)[-1]))
    return replace(log, ego="ego", tracks={**log.tracks, "ego": _track(log, way, heading, speed)})


def _track(log: DrivingLog, way: Floats, heading: float, speed: float) -> Track:
    stations = _stations(way)
    even = np.linspace(0, stations[-1], len(log))
    x, y = (np.interp(even, stations, way[:, axis]) for axis in (0, 1))
    seconds = (log.stamps - log.stamps[0]) * 1e-9
    velocity = np.gradient(np.column_stack([x, y]), seconds, axis=0)
    headings = np.unwrap(np.arctan2(velocity[:, 1], velocity[:, 0]))
    headings[0] = heading
    velocity[0] = speed * np.cos(heading), speed * np.sin(heading)
    return Track(
        kind="vehicle",
        position=np.column_stack([x, y, np.zeros(len(log))]),
        heading=headings,
        velocity=velocity,
        size=np.array(SIZE),
        valid=np.ones(len(log), bool),
        category="ego",
    )


def _way(
    lanes: dict[str, MapFeature], start: Floats, heading: float, goal: dict[str, Any]
) -> Floats | None:
    """(N, 2) from the start along center lines to a goal, or None where none lead there."""
    first = _lanes_at(lanes, start, heading)
    if goal.get("shape") == "lanelet":
        last, end = [str(goal.get("lane"))], None
    else:
        end = _center(goal)
        last = _lanes_at(lanes, end, None)
    chain = _chain(lanes, first, last)
    if chain is None:
        return None
    way, entered = start[None], 0
    for index, key in enumerate(chain):
        line = lanes[key].points[:, :2]
        beside = index > 0 and key not in _links(lanes[chain[index - 1]], "exit_lanes")
        leaves = index + 1 < len(chain) and chain[index + 1] not in _links(lanes[key], "exit_lanes")
        entered = len(way)
        if not leaves:
            way = np.vstack([way, line[_ahead(line, way[-1], CHANGE_M if beside else 1.0) :]])
    if end is None:
        stop = np.searchsorted(_stations(way[entered:]), INSIDE_M) if entered < len(way) else 0
        way = way[: entered + int(stop) + 1]
    else:
        way = np.vstack([way[: max(1, int(np.hypot(*(way - end).T).argmin()))], end])
    kept = np.append(True, np.hypot(*np.diff(way, axis=0).T) > 0.1)
    return way[kept] if kept.sum() > 1 else None


def _ahead(line: Floats, point: Floats, distance: float) -> int:
    """Index of the line's first vertex that far ahead of where the point is nearest to it."""
    nearest = int(np.hypot(*(line - point).T).argmin())
    stations = _stations(line)
    along = line[min(nearest + 1, len(line) - 1)] - line[max(nearest - 1, 0)]
    passed = (point - line[nearest]) @ along / np.hypot(*along)
    return int(np.searchsorted(stations, stations[nearest] + passed + distance))


def _chain(lanes: dict[str, MapFeature], first: list[str], last: list[str]) -> list[str] | None:
    """Lanes from one of some to one of others, through exits and to lanes beside, the fewest."""
    before = dict.fromkeys(first, "")
    queue = deque(first)
    while queue:
        here = queue.popleft()
        if here in last:
            chain = [here]
            while before[chain[-1]]:
                chain.append(before[chain[-1]])
            return chain[::-1]
        beside = [
            key
            for side in ("left", "right")
            if lanes[here].properties.get(f"{side}_neighbor_drives") == "same"
            for key in _links(lanes[here], f"{side}_neighbor")
        ]
        for key in [*_links(lanes[here], "exit_lanes"), *beside]:
            if key in lanes and key not in before:
                before[key] = here
                queue.append(key)
    return None


def _links(lane: MapFeature, name: str) -> list[str]:
    links = lane.properties.get(name) or []
    return [str(key) for key in (links if isinstance(links, list | tuple) else [links])]


def _lanes_at(lanes: dict[str, MapFeature], point: Floats, heading: float | None) -> list[str]:
    """The lanes that pass within 2 m and point there too, or else the nearest, nearest first."""

    def gap(lane: MapFeature) -> float:
        line = lane.points[:, :2]
        fine = np.linspace(line[:-1], line[1:], 5, endpoint=False, axis=1).reshape(-1, 2)
        away = np.hypot(*(fine - point).T)
        nearest = int(away.argmin())
        along = np.diff(fine, axis=0, append=line[-1:])[nearest]
        against = heading is not None and along @ [np.cos(heading), np.sin(heading)] <= 0
        return float(away[nearest]) + 100.0 * against

    gaps = {key: gap(lane) for key, lane in lanes.items()}
    nearest = sorted(gaps, key=lambda key: gaps[key])
    return [key for key in nearest if gaps[key] < 2.0] or nearest[:1]


def _center(place: dict[str, Any]) -> Floats:
    center = np.asarray(place["center"], np.float64)[:2]
    if center.shape != (2,) or not np.isfinite(center).all():
        raise DatasetError(f"{place!r:.80} is no place")
    return center


def _stations(line: Floats) -> Floats:
    return np.append(0.0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
