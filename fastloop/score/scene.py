"""A sample drawn from above: the surroundings, what was driven, and what was planned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.benchmark import Moment
from fastloop.sims.report.markup import Html, element, join

__all__ = ["LINES", "draw"]

LINES = {"plan": 2, "truth": 1, "others": 3}  # trajectory to the series that colors it
LAYERS = ("drivable", "lane", "line", "edge", "agent", "pedestrian", "ego")
MARGIN_M, LEAST_M = 8.0, 40.0


def draw(moment: Moment, plan: NDArray[np.float64]) -> Html:
    """An SVG with the vehicle's front upwards; everything is in m.

    Args:
        moment: the sample.
        plan: (T, 2) waypoints.
    """
    paths = {"truth": moment.truth, "plan": plan}
    low, high = _window([plan, moment.truth, *moment.others.values()])
    parts = [
        element(
            "path",
            d=_path(shape.points, shape.area),
            class_=f"{shape.kind} layer{' area' * shape.area}",
        )
        for layer in LAYERS
        for shape in moment.shapes
        if shape.kind == layer and _inside(shape.points, low, high)
    ]
    parts += [
        _trajectory(points, LINES["others"], label) for label, points in moment.others.items()
    ]
    parts += [_trajectory(points, LINES[name], name) for name, points in paths.items()]
    parts.append(_scale_bar(low, high))
    # x points up and y to the left, while an SVG's y points down.
    width, height = high[1] - low[1], high[0] - low[0]
    view = f"{-high[1]:.1f} {-high[0]:.1f} {width:.1f} {height:.1f}"
    return element(
        "svg", join(parts), viewBox=view, class_="scene", role="img", aria_label=moment.title
    )


def _window(lines: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners of a square that shows the vehicle and all of `lines`."""
    points = np.vstack([np.zeros((1, 2)), *(line[:, :2] for line in lines)])
    points = points[np.isfinite(points).all(axis=1)]
    low, high = points.min(axis=0) - MARGIN_M, points.max(axis=0) + MARGIN_M
    center, half = (low + high) / 2, max(LEAST_M, *(high - low)) / 2
    return center - half, center + half


def _inside(
    points: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> bool:
    return bool((points.max(axis=0) >= low).all() and (points.min(axis=0) <= high).all())


def _path(points: NDArray[np.float64], closed: bool = False) -> str:
    corners = "L".join(f"{-y:.2f} {-x:.2f}" for x, y in points[:, :2])
    return f"M{corners}{'z' if closed else ''}"


def _trajectory(points: NDArray[np.float64], series: int, label: str) -> Html:
    line = np.vstack([np.zeros((1, 2)), points[:, :2]])
    dots = [element("circle", cx=f"{-y:.2f}", cy=f"{-x:.2f}", r=0.35) for x, y in points[:, :2]]
    path = element("path", d=_path(line), class_=f"curve s{series}")
    return element("g", element("title", label), path, *dots, class_=f"s{series}")


def _scale_bar(low: NDArray[np.float64], high: NDArray[np.float64]) -> Html:
    left, bottom = -high[1] + 2, -low[0] - 2
    return element(
        "g",
        element("path", d=f"M{left:.2f} {bottom:.2f}h10", class_="bar"),
        element("text", "10 m", x=f"{left:.2f}", y=f"{bottom - 0.8:.2f}"),
    )


def legend() -> Mapping[str, int]:
    """What the colors stand for, by the words of the page."""
    return {"planned": LINES["plan"], "driven": LINES["truth"], "rated by people": LINES["others"]}
