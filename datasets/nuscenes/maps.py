"""Maps of nuScenes: drivable areas, lanes, crossings and dividers around a place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.driving_log import MapFeature
from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.datasets.nuscenes.arcs import center_line
from fastloop.extras import require

__all__ = ["LOCATIONS", "NuScenesMap", "open_map"]

LOCATIONS = {
    "boston-seaport": "boston",
    "singapore-hollandvillage": "holland",
    "singapore-onenorth": "onenorth",
    "singapore-queenstown": "queenstown",
}
"""Each location, and what the older files of drivable areas call it."""

OLDEST = (1, 3)  # version of the map expansion; before it drivable areas were drawn differently
LARGEST = 1 << 29  # bytes; the largest map expansion has some 10^8
MOST_POINTS = 1 << 24  # of all layers, each of which can draw the same polygon again
FARTHEST = 1e6  # m; the largest map has some 3,000

_AREAS = {
    "ped_crossing": "crosswalk", "walkway": "walkway", "stop_line": "stop_line",
    "carpark_area": "other",
}  # fmt: skip
_LINES = {"road_divider": "lane_line", "lane_divider": "lane_line"}
_LANES = ("lane", "lane_connector")


@dataclass(frozen=True)
class NuScenesMap:
    """The map of one location, in m from its south-west corner: x east, y north.

    Attributes:
        location: one of `LOCATIONS`.
        path: the file it was read from.
        drivable: shapely (multi)polygon where vehicles may drive, its parts merged.
        lines: lanes (their center lines), crossings, dividers and the like; without the map
            expansion there are none.
    """

    location: str
    path: Path
    drivable: Any
    lines: Sequence[MapFeature]

    @cached_property
    def _tree(self) -> Any:
        shapely = require("shapely", extra="data")
        return shapely.STRtree([shapely.box(*_bounds(line.points)) for line in self.lines])

    def window(self, x: float, y: float, reach: float) -> tuple[MapFeature, ...]:
        """What is within `reach` m (a square) of x, y: drivable areas without holes, then lines.

        Areas are cut to the window, and where they have holes cut in two through them; lines are
        whole.
        """
        shapely = require("shapely", extra="data")
        window = (x - reach, y - reach, x + reach, y + reach)
        near = _polygons(shapely.clip_by_rect(self.drivable, *window))
        pieces = [piece for part in near for piece in _without_holes(part)]
        lines = sorted(self._tree.query(shapely.box(*window)).tolist())
        return (
            *(MapFeature("drivable", _flat(piece.exterior.coords[:-1]), True) for piece in pieces),
            *(self.lines[i] for i in lines),
        )


@os_errors_are_faults()
def open_map(
    root: str | Path, location: str, folder: str | Path | None = None
) -> NuScenesMap | None:
    """The map of a location, or None where no file of it is there.

    Looked for are, in this order, ``expansion/<location>.json`` (the map expansion, version 1.3 or
    later) and ``<location>_drivable.json`` or ``<short name>_drivable.json`` (a GeoJSON
    multipolygon of the drivable area alone, for instance ``boston_drivable.json``).

    Args:
        root: of the data set; maps are in its folder ``maps``.
        location: one of `LOCATIONS`, as in the table of logs.
        folder: where maps are instead.

    Raises:
        DatasetError: the location is unknown, or the file damaged or too old.
    """
    if location not in LOCATIONS:
        raise DatasetError(f"unknown location {location!r}; have: {', '.join(LOCATIONS)}")
    folder = Path(folder) if folder is not None else Path(root) / "maps"
    for name in (
        f"expansion/{location}.json",
        f"{location}_drivable.json",
        f"{LOCATIONS[location]}_drivable.json",
    ):
        path = folder / name
        if path.is_file():
            return _read(location, path, path.stat().st_mtime_ns)
    return None


@lru_cache(8)
def _read(location: str, path: Path, _changed: int) -> NuScenesMap:
    if path.stat().st_size > LARGEST:
        raise DatasetError(f"{path} has {path.stat().st_size} bytes: too many for a map")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected an object, not {type(content).__name__}")
    try:
        if "coordinates" in content:
            return NuScenesMap(location, path, _multipolygon(content), ())
        return _expansion(location, path, content)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path}: not laid out as a map of nuScenes ({error!r})") from error


def _multipolygon(content: Mapping[str, Any]) -> Any:
    if content["type"] != "MultiPolygon":
        raise DatasetError(f"type {content['type']!r}, expected MultiPolygon")
    return _merged(content["coordinates"])


def _merged(polygons: Sequence[Sequence[Any]]) -> Any:
    """One valid geometry of polygons, each an outline and holes."""
    shapely = require("shapely", extra="data")
    parts = []
    for outline, *holes in polygons:
        rings = [np.asarray(ring, dtype=np.float64) for ring in (outline, *holes)]
        if not all(ring.ndim == 2 and (abs(ring) < FARTHEST).all() for ring in rings):
            raise DatasetError("a polygon holds something else than finite points of the map")
        parts.append(shapely.make_valid(shapely.Polygon(rings[0], rings[1:])))
    return shapely.MultiPolygon(_polygons(shapely.union_all(parts)))


def _expansion(location: str, path: Path, content: Mapping[str, Any]) -> NuScenesMap:
    version = str(content.get("version", "none"))
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if numbers < OLDEST:
        raise DatasetError(f"version {version} of the map expansion, expected 1.3 or later")
    nodes = {row["token"]: (float(row["x"]), float(row["y"])) for row in content["node"]}

    drawn = 0

    def points(tokens: Sequence[str]) -> NDArray[np.float64]:
        nonlocal drawn
        drawn += len(tokens)
        if drawn > MOST_POINTS:
            raise DatasetError(f"its layers have more than {MOST_POINTS} points")
        return _flat([nodes[token] for token in tokens])

    rings = {
        row["token"]: [
            row["exterior_node_tokens"],
            *(hole["node_tokens"] for hole in row.get("holes", ())),
        ]
        for row in content["polygon"]
    }
    lines = {row["token"]: row["node_tokens"] for row in content["line"]}
    features = []
    for layer, kind in _AREAS.items():
        for row in content[layer]:
            outline = points(rings[row["polygon_token"]][0])
            features.append(MapFeature(kind, outline, True, id=row["token"], category=layer))
    for layer, kind in _LINES.items():
        for row in content[layer]:
            line = points(lines[row["line_token"]])
            features.append(MapFeature(kind, line, id=row["token"], category=layer))
    arcs, links = content.get("arcline_path_3", {}), content.get("connectivity", {})
    for layer in _LANES:
        for row in content[layer]:
            token = row["token"]
            link = links.get(token, {})
            middle = center_line(arcs[token]) if arcs.get(token) else np.zeros((0, 2))
            area = rings.get(row.get("polygon_token") or "", [()])[0]
            features.append(
                MapFeature(
                    "lane",
                    _flat(middle),
                    properties={
                        "entry_lanes": list(link.get("incoming", ())),
                        "exit_lanes": list(link.get("outgoing", ())),
                    },
                    id=token,
                    category=layer,
                    outline=points(area) if len(area) else None,
                )
            )
    drivable = _merged(
        [
            [points(ring)[:, :2] for ring in rings[token]]
            for row in content["drivable_area"]
            for token in row["polygon_tokens"]
        ]
    )
    shown = tuple(feature for feature in features if len(feature.points))
    if not all((abs(feature.points) < FARTHEST).all() for feature in shown):
        raise DatasetError("a node is not finite, or far from any map")
    return NuScenesMap(location, path, drivable, shown)


def _flat(points: Any) -> NDArray[np.float64]:
    """(N, 3) of points (N, 2), z 0."""
    flat = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)


def _bounds(points: NDArray[np.float64]) -> tuple[float, ...]:
    return (*points[:, :2].min(axis=0), *points[:, :2].max(axis=0))


def _polygons(geometry: Any) -> list[Any]:
    """The polygons among the parts of a geometry."""
    parts = getattr(geometry, "geoms", [geometry])
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]


def _without_holes(polygon: Any) -> list[Any]:
    """The same area, cut through the middle of a hole until none is left."""
    shapely = require("shapely", extra="data")
    whole, holed = [], [polygon]
    while holed:
        part = holed.pop()
        if not part.interiors:
            whole.append(part)
            continue
        left, low, right, high = part.bounds
        first, _, last, _ = part.interiors[len(part.interiors) // 2].bounds
        middle = (first + last) / 2
        for half in ((left, low, middle, high), (middle, low, right, high)):
            holed += _polygons(shapely.clip_by_rect(part, *half))
    return whole
