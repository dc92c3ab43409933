"""CommonRoad scenarios: roads, recorded traffic and a planning problem, in one XML file each.

Formats 2018b and 2020a (Althoff et al. 2017, https://commonroad.in.tum.de; read against
commonroad-io's XML reader). Positions in m in the scenario's own plane, angles in rad counter-
clockwise from its x axis, velocities in m/s along the heading, times as whole numbers of steps of
``timeStepSize`` s. Where a value is an interval or a shape, its middle is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import DrivingLog, Track
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.logs import commonroad_roads
from fastloop.datasets.logs.commonroad_xml import (
    child,
    middle,
    number,
    parse,
    place,
    rectangle,
    shapes,
    span,
    word,
)
from fastloop.datasets.logs.sightings import check_size, track

__all__ = ["read"]

VERSIONS = ("2018b", "2020a")

_KINDS = {
    **dict.fromkeys(
        ("car", "truck", "bus", "motorcycle", "priorityVehicle", "parkedVehicle", "taxi", "train"),
        "vehicle",
    ),
    "bicycle": "cyclist",
    "pedestrian": "pedestrian",
    **dict.fromkeys(("constructionZone", "roadBoundary", "medianStrip"), "barrier"),
}

_LOCATION = {
    "geoNameId": "geo_name_id", "gpsLatitude": "latitude_deg", "gpsLongitude": "longitude_deg",
}  # fmt: skip
_STATE = {"yawRate": "yaw_rate", "slipAngle": "slip_angle", "orientation": "heading"}


def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """Read scenarios.

    Nobody recorded a scenario from within, so a log has no ego: the metadata's
    ``planning_problems`` tell where one starts (``initial``) and is to go (``goals``, with ends of
    intervals in lists), in SI units. Stamps are the times at which anybody was seen, from the start
    of the scenario; predicted sets (``occupancySet``) and phantoms are no sightings. The map has
    the lanes, their bounds and stop lines, signals are traffic lights, one for each lane that obeys
    them, and ``traffic_signs`` with the source's own numbers.

    Args:
        path: an ``.xml`` file, or a folder of such.
        on_fault: told of a scenario that cannot be read.
    """
    path = Path(path)
    with os_errors_are_faults():
        files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    if not files:
        on_fault(DatasetError(f"{path} holds no .xml file of a CommonRoad scenario"))
    for file in files:
        try:
            log = _read_scenario(parse(file))
        except DatasetError as fault:
            on_fault(DatasetError(f"{file}: {fault}"))
        else:
            yield log


def _read_scenario(root: Element) -> DrivingLog:
    version, name = root.get("commonRoadVersion"), root.get("benchmarkID") or ""
    if root.tag != "commonRoad" or version not in VERSIONS or not name:
        raise DatasetError(
            f"{root.tag} of version {version} and benchmarkID {name!r}; expected commonRoad of "
            f"version {' or '.join(VERSIONS)} and a benchmarkID"
        )
    step = number(root.get("timeStepSize"), "timeStepSize")
    if not 0 < step < 1e3:
        raise DatasetError(f"timeStepSize is {step} s")
    obstacles = [
        element
        for element in root
        if element.tag in ("obstacle", "dynamicObstacle", "staticObstacle")
    ]
    seen = {id(obstacle): _states(obstacle) for obstacle in obstacles if not _is_static(obstacle)}
    times = np.array(sorted({time for times, _ in seen.values() for time in times} or {0}))
    if times[-1] * step > 9e9:
        raise DatasetError(f"time step {times[-1]} of {step} s is later than any drive")
    check_size(len(obstacles), len(times), "scenario")
    tracks: dict[str, Track] = {}
    for obstacle in obstacles:
        key = obstacle.get("id", "")
        if not key or key in tracks:
            raise DatasetError(f"two obstacles have the id {key!r}, or one has none")
        tracks[key] = _track(obstacle, times, seen.get(id(obstacle)))
    return DrivingLog(
        name=name,
        source="commonroad",
        frame=f"plane of the CommonRoad scenario {name}: right-handed, z up, m",
        stamps=np.round(times * step * 1e9).astype(np.int64),
        ego=None,
        tracks=tracks,
        map=commonroad_roads.read_map(root),
        signals=commonroad_roads.read_signals(root, times, step),
        metadata=_metadata(root, step),
    )


def _is_static(obstacle: Element) -> bool:
    return obstacle.tag == "staticObstacle" or word(obstacle, "role") == "static"


def _states(obstacle: Element) -> tuple[list[int], list[Element]]:
    states = [child(obstacle, "initialState"), *obstacle.findall("trajectory/state")]
    return [_time(state) for state in states], states


def _time(state: Element) -> int:
    time = middle(child(state, "time"))
    if not 0 <= time < 1e12 or time != int(time):
        raise DatasetError(f"a state is at time step {time}; expected a whole number")
    return int(time)


def _track(
    obstacle: Element, times: NDArray[np.int64], seen: tuple[list[int], list[Element]] | None
) -> Track:
    """The track of an obstacle, of a static one (`seen` is None) over all times."""
    if seen is None:
        at, states = np.arange(len(times)), [child(obstacle, "initialState")]
    else:
        at, states = np.searchsorted(times, seen[0]), seen[1]
    size, center, turn = rectangle(child(obstacle, "shape"))
    heading = np.array([middle(child(state, "orientation")) for state in states])
    position = np.array([place(child(state, "position")) for state in states])
    category = word(obstacle, "type", "unknown")
    along = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    left = np.stack([-along[:, 1], along[:, 0]], axis=1)
    position[:, :2] += center[0] * along + center[1] * left
    if seen is None:
        velocity = np.zeros((1, 2))
    else:
        forward, sideways = (_values(states, key) for key in ("velocity", "velocityY"))
        velocity = forward[:, None] * along + np.nan_to_num(sideways)[:, None] * left
    return track(
        len(times),
        at,
        kind=_KINDS.get(category, "other"),
        position=position,
        heading=heading + turn,
        velocity=velocity,
        size=np.array([*size, np.nan]),
        category=category,
    )


def _values(states: list[Element], key: str) -> NDArray[np.float64]:
    found = [state.find(key) for state in states]
    return np.array([math.nan if element is None else middle(element) for element in found])


def _metadata(root: Element, step: float) -> dict[str, Any]:
    tags = root.find("scenarioTags")
    problems = [
        {
            "id": problem.get("id", ""),
            "initial": _state(child(problem, "initialState"), step),
            "goals": [_state(goal, step) for goal in problem.findall("goalState")],
        }
        for problem in root.findall("planningProblem")
    ]
    return {
        "version": root.get("commonRoadVersion", ""),
        **{key: root.get(key, "") for key in ("author", "affiliation", "source", "date")},
        "tags": root.get("tags", "").split() if tags is None else [tag.tag for tag in tags],
        "location": {
            name: number(word(root, f"location/{tag}"), tag)
            for tag, name in _LOCATION.items()
            if root.find(f"location/{tag}") is not None
        },
        "time_step": step,
        "planning_problems": problems,
        "intersections": commonroad_roads.read_intersections(root),
    }


def _state(state: Element, step: float) -> dict[str, Any]:
    """A state in plain numbers: exact values as such, intervals as their ends, times in s."""
    found: dict[str, Any] = {}
    for element in state:
        if element.tag == "position":
            found["position"] = shapes(element)
            continue
        low, high = (end * (step if element.tag == "time" else 1) for end in span(element))
        found[_STATE.get(element.tag, element.tag)] = low if low == high else [low, high]
    return found
