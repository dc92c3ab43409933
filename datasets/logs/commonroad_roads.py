"""Lanes, lines, traffic lights and signs of a CommonRoad scenario."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import MapFeature, Signal
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.commonroad_xml import (
    child,
    number,
    place,
    points,
    reference,
    word,
)
from fastloop.datasets.logs.sightings import check_size

__all__ = ["read_intersections", "read_map", "read_signals"]

_AREAS = {"crosswalk": "crosswalk", "sidewalk": "walkway"}
_EDGES = ("curb", "lowered_curb")
_COLORS = {"red": "stop", "redYellow": "stop", "yellow": "caution", "green": "go"}
_SPEED_LIMITS = ("274", "R2-1")  # in Germany and the United States


def read_map(root: Element) -> tuple[MapFeature, ...]:
    """Each lanelet as a lane (its center line and outline), crosswalk or walkway; its bounds as
    lines, with ``lane`` and ``side`` as properties; its stop line."""
    limits = {
        sign.get("id"): number(word(element, "additionalValue"), "speed limit")
        for sign in root.findall("trafficSign")
        for element in sign.findall("trafficSignElement")
        if word(element, "trafficSignID") in _SPEED_LIMITS
    }
    lanelets = root.findall("lanelet")
    return tuple(feature for lanelet in lanelets for feature in _features(lanelet, limits))


def _bounds(lanelet: Element) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = (points(child(lanelet, side)) for side in ("leftBound", "rightBound"))
    if len(left) != len(right) or len(left) < 2:
        raise DatasetError(
            f"lanelet {lanelet.get('id')} has {len(left)} points on its left and {len(right)} on "
            "its right; expected as many, and two at least"
        )
    return left, right


def _features(lanelet: Element, limits: dict[str | None, float]) -> Iterator[MapFeature]:
    left, right = _bounds(lanelet)
    key = lanelet.get("id", "")
    types = [(element.text or "").strip() for element in lanelet.findall("laneletType")]
    outline = np.concatenate([left, right[::-1]])
    kind = next((_AREAS[word] for word in types if word in _AREAS), "lane")
    area = kind != "lane"
    yield MapFeature(
        kind=kind,
        points=outline if area else (left + right) / 2,
        area=area,
        properties=_properties(lanelet, limits),
        id=key,
        category=" ".join(types),
        outline=None if area else outline,
    )
    for side, line in (("left", left), ("right", right)):
        marking = word(child(lanelet, f"{side}Bound"), "lineMarking")
        yield MapFeature(
            kind="road_edge" if marking in _EDGES else "lane_line",
            points=line,
            properties={"lane": key, "side": side},
            category=marking,
        )
    if (stop := lanelet.find("stopLine")) is not None:
        yield MapFeature(
            kind="stop_line",
            points=_stop_line(lanelet),
            properties={"lane": key},
            category=word(stop, "lineMarking"),
        )


def _properties(lanelet: Element, limits: dict[str | None, float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [reference(element) for element in lanelet.findall(tag)]
        for name, tag in (
            ("entry_lanes", "predecessor"),
            ("exit_lanes", "successor"),
            ("left_neighbor", "adjacentLeft"),
            ("right_neighbor", "adjacentRight"),
        )
    }
    for side in ("left", "right"):
        if (beside := lanelet.find(f"adjacent{side.title()}")) is not None:
            found[f"{side}_neighbor_drives"] = beside.get("drivingDir", "")
    for users in ("userOneWay", "userBidirectional"):
        if words := [(element.text or "").strip() for element in lanelet.findall(users)]:
            found[{"userOneWay": "one_way_for", "userBidirectional": "both_ways_for"}[users]] = (
                words
            )
    refs = [reference(element) for element in lanelet.findall("trafficSignRef")]
    known = [limits[ref] for ref in refs if ref in limits]
    if (limit := lanelet.find("speedLimit")) is not None:  # 2018b
        known.append(number(limit.text, "speedLimit"))
    if known:
        found["speed_limit_kmh"] = 3.6 * min(known)
    return found


def _stop_line(lanelet: Element) -> NDArray[np.float64]:
    """Where vehicles stop: at the stop line, or the end of the lanelet; (2, 3) m."""
    stop = lanelet.find("stopLine")
    drawn = points(stop) if stop is not None else np.empty((0, 3))
    left, right = _bounds(lanelet)
    return drawn if len(drawn) == 2 else np.stack([left[-1], right[-1]])


def read_signals(root: Element, times: NDArray[np.int64], step: float) -> dict[str, Any]:
    """The states of traffic lights at time steps `times`, and the traffic signs."""
    obeyed: dict[str, list[Element]] = defaultdict(list)
    for lanelet in root.findall("lanelet"):
        for tag in ("trafficLightRef", "trafficSignRef"):
            for element in lanelet.findall(tag):
                obeyed[reference(element)].append(lanelet)
    for tag in ("trafficLight", "trafficSign"):
        ids = [element.get("id", "") for element in root.findall(tag)]
        if len(set(ids)) < len(ids):
            raise DatasetError(f"two elements {tag} have the same id")
    lights = [
        (light, lanelet)
        for light in root.findall("trafficLight")
        for lanelet in obeyed[light.get("id", "")] or [None]
    ]
    check_size(len(lights), len(times), "traffic lights")
    signals: dict[str, Any] = {}
    for light, lanelet in lights:
        key, lane = light.get("id", ""), "" if lanelet is None else lanelet.get("id", "")
        signals[f"{key}:{lane}" if lane else key] = Signal(
            states=_light_states(light, times),
            lane=lane,
            position=None if lanelet is None else _stop_line(lanelet).mean(axis=0),
            properties=_light_properties(light, step),
        )
    if signs := root.findall("trafficSign"):
        signals["traffic_signs"] = {
            sign.get("id", ""): {
                "elements": [
                    {
                        "id": word(element, "trafficSignID"),
                        "values": [
                            entry.text or "" for entry in element.findall("additionalValue")
                        ],
                    }
                    for element in sign.findall("trafficSignElement")
                ],
                "position": _position(sign),
                "virtual": word(sign, "virtual") == "true",
                "lanes": [lanelet.get("id", "") for lanelet in obeyed[sign.get("id", "")]],
            }
            for sign in signs
        }
    return signals


def _position(element: Element) -> list[float] | None:
    position = element.find("position")
    return None if position is None else place(position).tolist()


def _cycle(light: Element) -> list[tuple[str, float]]:
    """Colors and how many time steps each of them lasts."""
    return [
        (word(element, "color"), number(word(element, "duration"), "duration"))
        for element in light.findall("cycle/cycleElement")
    ]


def _offset(light: Element) -> float:
    return number(word(light, "cycle/timeOffset", "0"), "timeOffset")


def _light_states(light: Element, times: NDArray[np.int64]) -> tuple[str, ...]:
    cycle = _cycle(light)
    ends = np.cumsum([duration for _, duration in cycle])
    if any(duration < 0 for _, duration in cycle) or (cycle and not 0 < ends[-1] < 1e12):
        raise DatasetError(f"traffic light {light.get('id')} has a cycle of impossible durations")
    if not cycle or word(light, "active", "true") != "true":
        return ("unknown",) * len(times)
    shown = np.searchsorted(ends, (times - _offset(light)) % ends[-1], side="right")
    return tuple(_COLORS.get(cycle[min(index, len(cycle) - 1)][0], "unknown") for index in shown)


def _light_properties(light: Element, step: float) -> dict[str, Any]:
    return {
        "direction": word(light, "direction", "all"),
        "active": word(light, "active", "true") == "true",
        "cycle": [[color, duration * step] for color, duration in _cycle(light)],
        "cycle_offset": _offset(light) * step,
        "light_position": _position(light),
    }


def read_intersections(root: Element) -> list[dict[str, Any]]:
    """Which lanes meet at each intersection, and where they lead from there."""
    # Later files of the same format say "outgoing" for "successors".
    tags = {
        "lanes": ("incomingLanelet",),
        "right": ("successorsRight", "outgoingRight"),
        "straight": ("successorsStraight", "outgoingStraight"),
        "left": ("successorsLeft", "outgoingLeft"),
    }
    return [
        {
            "id": intersection.get("id", ""),
            "incoming": [
                {
                    name: [reference(element) for element in incoming if element.tag in either]
                    for name, either in tags.items()
                }
                for incoming in intersection.findall("incoming")
            ],
        }
        for intersection in root.findall("intersection")
    ]
