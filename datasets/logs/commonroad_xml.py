"""The XML of CommonRoad: parsed without trusting it, and its numbers, intervals and shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.errors import DatasetError

__all__ = [
    "child",
    "middle",
    "number",
    "parse",
    "place",
    "points",
    "rectangle",
    "reference",
    "shapes",
    "span",
    "word",
]

MAX_BYTES, MAX_ELEMENTS, MAX_DEPTH = 2**26, 2_000_000, 50


def parse(path: Path) -> Element:
    """The root of an XML file.

    A file with a document type is refused: it alone could declare entities, which make small files
    large or name other files. So are files that are deeper or larger than any scenario.

    Raises:
        DatasetError: saying why it is refused, or the line where it is no XML.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise DatasetError(f"more than {MAX_ELEMENTS} elements, or {MAX_DEPTH} in each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*declaration: Any) -> None:
        raise DatasetError("it declares a document type, which a scenario has no need of")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        if path.stat().st_size > MAX_BYTES or not path.is_file():
            raise DatasetError(f"expected a file of at most {MAX_BYTES} bytes")
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except DatasetError:
        raise
    except (expat.ExpatError, LookupError, OSError, ValueError) as error:
        raise DatasetError(f"it is no readable XML ({error})") from error


def child(element: Element, tag: str) -> Element:
    """The first child called `tag`; raises `DatasetError` where there is none."""
    found = element.find(tag)
    if found is None:
        raise DatasetError(f"{element.tag} {element.get('id', '')} has no {tag}")
    return found


def word(element: Element, tag: str, default: str = "") -> str:
    """The text of the first child called `tag`."""
    found = element.find(tag)
    return default if found is None or found.text is None else found.text.strip()


def reference(element: Element) -> str:
    """The id that an element refers to."""
    if ref := element.get("ref"):
        return ref
    raise DatasetError(f"{element.tag} has no ref")


def number(text: str | None, what: str) -> float:
    """A finite number; raises `DatasetError` for any other text."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{what} is {str(text)[:40]!r}; expected a number")
    return value


def span(element: Element) -> tuple[float, float]:
    """The ends of an interval; twice the same where the value is exact."""
    exact = element.find("exact")
    low, high = (
        (child(element, "intervalStart"), child(element, "intervalEnd"))
        if exact is None
        else (exact, exact)
    )
    return number(low.text, element.tag), number(high.text, element.tag)


def middle(element: Element) -> float:
    """An exact value, or the middle of an interval."""
    low, high = span(element)
    return low + (high - low) / 2


def _point(element: Element) -> list[float]:
    z = element.find("z")
    ends = [number(child(element, axis).text, axis) for axis in ("x", "y")]
    return [*ends, 0.0 if z is None else number(z.text, "z")]


def points(element: Element) -> NDArray[np.float64]:
    """The points (N, 3) right under an element, in m; z is 0 where they have none."""
    return np.array([_point(found) for found in element.findall("point")]).reshape(-1, 3)


def shapes(element: Element) -> list[dict[str, Any]]:
    """Points, rectangles, circles, polygons and lanelets right under an element, in words and
    numbers: ``shape`` is which of them, ``center`` its x, y and z in m."""
    return [_shape(found) for found in element]


def _shape(element: Element) -> dict[str, Any]:
    def get(tag: str) -> float:
        return number(child(element, tag).text, tag)

    center = element.find("center")
    middle = [0.0] * 3 if center is None else _point(center)
    match element.tag:
        case "point":
            return {"shape": "point", "center": _point(element)}
        case "circle":
            return {"shape": "circle", "center": middle, "radius": get("radius")}
        case "rectangle":
            turned = element.find("orientation") is not None
            return {
                "shape": "rectangle",
                "center": middle,
                "length": get("length"),
                "width": get("width"),
                "heading": get("orientation") if turned else 0.0,
            }
        case "polygon":
            corners = points(element)
            if len(corners) < 3:
                raise DatasetError("a polygon has less than three corners")
            center_of_box = (corners.min(axis=0) + corners.max(axis=0)) / 2
            return {
                "shape": "polygon",
                "center": center_of_box.tolist(),
                "corners": corners.tolist(),
            }
        case "lanelet":
            return {"shape": "lanelet", "lane": reference(element)}
    raise DatasetError(
        f"unknown shape {element.tag!r}; have: point, rectangle, circle, polygon, lanelet"
    )


def place(element: Element) -> NDArray[np.float64]:
    """The point (3,), or the center of the one shape, under an element."""
    found = shapes(element)
    if len(found) != 1 or "center" not in found[0]:
        raise DatasetError(f"{element.tag} is not one point or shape")
    return np.array(found[0]["center"])


def rectangle(element: Element) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Length and width (2,), center (3,) and heading of the rectangle around the shapes under an
    element, in the axes of what has that shape; nan where there is none."""
    found = shapes(element)
    if len(found) == 1 and found[0]["shape"] == "rectangle":
        box = found[0]
        return np.array([box["length"], box["width"]]), np.array(box["center"]), box["heading"]
    corners = [corner for shape in found for corner in _corners(shape)]
    if not corners:
        return np.full(2, np.nan), np.zeros(3), 0.0
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return (high - low)[:2], (low + high) / 2, 0.0


def _corners(shape: dict[str, Any]) -> list[list[float]]:
    if shape["shape"] == "polygon":
        return shape["corners"]
    if shape["shape"] not in ("circle", "rectangle"):
        return []
    x, y, z = shape["center"]
    if shape["shape"] == "circle":
        r = shape["radius"]
        return [[x - r, y - r, z], [x + r, y + r, z]]
    c, s = math.cos(shape["heading"]), math.sin(shape["heading"])
    half = [(a * shape["length"] / 2, b * shape["width"] / 2) for a in (-1, 1) for b in (-1, 1)]
    return [[x + c * u - s * v, y + s * u + c * v, z] for u, v in half]
