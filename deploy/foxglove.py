"""A layout for Foxglove that shows what a node hears, plans and says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastloop.deploy.config import DeployConfig
from fastloop.deploy.health.stages import STAGES
from fastloop.deploy.readers import READS

__all__ = ["foxglove_layout"]

PATH = "nav_msgs/msg/Path"
HEALTH = "/diagnostics"


def foxglove_layout(config: DeployConfig) -> dict[str, Any]:
    """The layout as Foxglove imports it: pictures, paths on a plane or joints over time,
    diagnostics, rung and latencies; of the topics of `config` only."""
    heard = {one.topic: one.type for one in config.inputs.values() if one.topic}
    pictures = [topic for topic, kind in heard.items() if READS.get(kind) == "picture"]
    paths = [topic for topic, kind in {**heard, **config.outputs}.items() if kind == PATH]
    panels: dict[str, dict[str, Any]] = {
        f"Image!{number}": {"imageMode": {"imageTopic": topic}}
        for number, topic in enumerate(pictures)
    }
    if paths:
        panels["3D!plan"] = {
            "cameraState": {"distance": 150, "perspective": False, "phi": 0, "thetaOffset": 0},
            "followMode": "follow-none",
            "fixedFrame": config.frame,
            "layers": {"grid": {"layerId": "foxglove.Grid", "visible": True, "size": 1000}},
            "topics": {topic: {"visible": True, "lineWidth": 1} for topic in paths},
        }
    else:
        panels["Plot!joints"] = _plot([f"{config.state.topic}.position[:]"])
    views = list(panels)
    panels["DiagnosticSummary!health"] = {"topicToRender": HEALTH, "minLevel": 0}
    panels["Plot!rung"] = _plot([_value("rung")])
    panels["Plot!latency"] = _plot([_value(f"{stage}/p99_ms") for stage in STAGES])
    health = [name for name in panels if name not in views]
    return {
        "configById": panels,
        "globalVariables": {},
        "userNodes": {},
        "playbackConfig": {"speed": 1},
        "layout": {
            "direction": "row", "splitPercentage": 60,
            "first": _split(views, "column"), "second": _split(health, "column"),
        },
    }  # fmt: skip


def _value(key: str) -> str:
    """The path of one of the node's values, whose texts Foxglove plots as numbers."""
    return f'{HEALTH}.status[:].values[:]{{key=="{key}"}}.value'


def _plot(paths: Sequence[str]) -> dict[str, Any]:
    return {
        "paths": [
            {"value": path, "enabled": True, "timestampMethod": "receiveTime"} for path in paths
        ],
        "xAxisVal": "timestamp", "isSynced": True, "showLegend": True,
    }  # fmt: skip


def _split(names: Sequence[str], direction: str) -> Any:
    """Panels of equal size beside each other."""
    if len(names) == 1:
        return names[0]
    return {
        "direction": direction, "splitPercentage": 100 / len(names),
        "first": names[0], "second": _split(names[1:], direction),
    }  # fmt: skip
